//! One `mongod` on its own folder and port.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::install::{Program, program};
use super::{Options, SET, admin};
use crate::folder::Folder;
use crate::port::Port;
use crate::process::{Background, Launch, Lifetime, Process};
use crate::{Error, Result, Service};

#[derive(Debug)]
pub(super) struct Member {
    program: Program,
    options: Options,
    lifetime: Lifetime,
    port: Port,
    // Dropped in this order: the process ends before its folder goes.
    process: Mutex<Option<Process>>,
    folder: Folder,
}

impl Member {
    pub(super) fn start(options: Options, lifetime: Lifetime) -> Result<Member> {
        let program = program()?;
        let folder = Folder::create(Service::Mongodb, None, lifetime)?;
        fs::create_dir(folder.path().join("data")).map_err(Error::io("no data folder"))?;
        let port = Port::reserve()?;
        let member = Member { program, options, lifetime, port, process: Mutex::new(None), folder };
        member.run_process()?;
        Ok(member)
    }

    pub(super) fn port(&self) -> u16 {
        self.port.number
    }

    pub(super) fn pid(&self) -> Option<i32> {
        self.process().as_ref().map(Process::pid)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn crash(&self) {
        if let Some(mut process) = self.process().take() {
            process.crash();
        }
    }

    pub(super) fn stop(&self) {
        if let Some(mut process) = self.process().take() {
            process.stop(Service::Mongodb.end_signal(), Duration::from_secs(30));
        }
    }

    /// Removes everything that a stopped server had.
    pub(super) fn empty(&self) -> Result<()> {
        let data = self.folder().join("data");
        fs::remove_dir_all(&data).and_then(|()| fs::create_dir(&data)).map_err(Error::io(data.display()))
    }

    pub(super) fn leave(mut self, url: String) -> Result<Background> {
        let process = self.process().take().ok_or_else(|| Error::failed("the server is not running"))?;
        self.folder.keep();
        let service = Service::Mongodb;
        let background = Background { service, pid: process.pid(), url, folder: self.folder().to_owned() };
        process.leave();
        Ok(background)
    }

    /// Starts the process; returns when it takes connections.
    pub(super) fn run_process(&self) -> Result<()> {
        let path = |name: &str| self.folder().join(name).display().to_string();
        let mut arguments: Vec<String> =
            ["--bind_ip", "127.0.0.1", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.5"]
                .map(str::to_owned)
                .to_vec();
        if !self.options.standalone {
            arguments.extend(["--replSet".to_owned(), SET.to_owned()]);
        }
        arguments.extend(["--port".to_owned(), self.port().to_string(), "--dbpath".to_owned(), path("data")]);
        // Without them an ordinary end takes fifteen seconds, and the folder fills with diagnostics.
        for parameter in
            ["shutdownTimeoutMillisForSignaledShutdown=100", "diagnosticDataCollectionEnabled=false"]
        {
            arguments.push(format!("--setParameter={parameter}"));
        }
        if let Some(size) = self.options.oplog_size_mb {
            arguments.push(format!("--oplogSize={size}"));
        }
        arguments.extend(self.options.arguments.iter().cloned());
        let libraries = self.program.libraries.clone();
        let launch = Launch {
            program: self.program.mongod.clone(),
            arguments,
            environment: libraries
                .into_iter()
                .map(|folder| ("LD_LIBRARY_PATH".to_owned(), folder.into_os_string()))
                .collect(),
            account: None,
            log: self.folder().join("server.log"),
            lifetime: self.lifetime,
        };
        let mut process = Process::start(&launch)?;
        process.wait_until(Duration::from_secs(60), || admin::is_open(self.port()))?;
        *self.process() = Some(process);
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        // A panic elsewhere leaves the process as it was.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
