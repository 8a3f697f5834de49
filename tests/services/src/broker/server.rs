//! One server of any broker.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::recipe::{Recipe, Run, Site};
use super::{Broker, Options, program};
use crate::certificate;
use crate::folder::Folder;
use crate::offload::offload;
use crate::port::Port;
use crate::process::{Background, Launch, Lifetime, Process};
use crate::{Error, Result, Service};

/// A server of one's own; clones are the same server, and the last one ends it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    broker: Broker,
    site: Site,
    lifetime: Lifetime,
    _ports: Vec<Port>,
    // Dropped in this order: the processes end before their folder goes. The server is the last one, after its companions.
    processes: Mutex<Vec<Process>>,
    folder: Mutex<Folder>,
}

impl Server {
    /// Starts a server; returns when it answers clients.
    ///
    /// # Errors
    /// The service is missing, has no such option, or did not start (with the end of its log).
    pub async fn start(broker: Broker, options: Options) -> Result<Server> {
        offload(move || Server::start_blocking(broker, options)).await
    }

    /// [`Server::start`] for programs without a runtime.
    ///
    /// # Errors
    /// As there.
    pub fn start_blocking(broker: Broker, options: Options) -> Result<Server> {
        Server::launch(broker, options, Lifetime::Process)
    }

    /// Starts a server that goes on after this process.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_in_background(broker: Broker, options: Options) -> Result<Background> {
        let server = Server::launch(broker, options, Lifetime::Background)?;
        let pid = server.pid().ok_or_else(|| Error::failed("the server is not running"))?;
        let (service, url, folder) = (server.service(), server.url(), server.0.site.folder.clone());
        lock(&server.0.folder).keep();
        server.processes().drain(..).for_each(Process::leave);
        Ok(Background { service, pid, url, folder })
    }

    fn launch(broker: Broker, options: Options, lifetime: Lifetime) -> Result<Server> {
        let (recipe, service) = (broker.recipe(), broker.service());
        if options.password.is_some() && !recipe.has_password {
            return Err(Error::failed(format!("{service} is not set up for a password here")));
        }
        if options.tls && !recipe.has_tls {
            return Err(Error::failed(format!("{service} is not set up for TLS here")));
        }
        if options.advertised_port.is_some() && broker != Broker::Kafka {
            return Err(Error::failed(format!("{service} tells its clients no port")));
        }
        let program = program(broker)?;
        let folder = Folder::create(service, None, lifetime)?;
        let path = folder.path().to_owned();
        fs::create_dir(path.join("data")).map_err(Error::io("no data folder"))?;
        if options.tls {
            certificate::write(&path, &path, None)?;
        }
        let reserved = (0..recipe.ports).map(|_| Port::reserve()).collect::<Result<Vec<_>>>()?;
        let ports = reserved.iter().map(|port| port.number).collect();
        let site = Site { program, options, folder: path, ports };
        (recipe.prepare)(&site)?;
        let (folder, processes) = (Mutex::new(folder), Mutex::new(Vec::new()));
        let server = Server(Arc::new(Inner { broker, site, lifetime, _ports: reserved, processes, folder }));
        server.run_processes()?;
        Ok(server)
    }

    /// What it is.
    pub fn service(&self) -> Service {
        self.0.broker.service()
    }

    /// Where clients find it, with the user and the password where there are some.
    pub fn url(&self) -> String {
        (self.recipe().url)(&self.0.site)
    }

    /// The port of the URL on 127.0.0.1, the same after every restart.
    pub fn port(&self) -> u16 {
        self.0.site.port()
    }

    /// The port of STOMP: Artemis has it at that of its URL, ActiveMQ at another; `None` for the others.
    pub fn stomp_port(&self) -> Option<u16> {
        self.port_of("stomp")
    }

    /// The port of OpenWire: Artemis has it at that of its URL, ActiveMQ at another; `None` for the others.
    pub fn openwire_port(&self) -> Option<u16> {
        self.port_of("openwire")
    }

    /// The process of the server while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.processes().last().map(Process::pid)
    }

    /// The data folder.
    pub fn data_folder(&self) -> PathBuf {
        self.0.site.folder.join("data")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.0.site.folder.join("server.log")).unwrap_or_default()
    }

    /// The certificate (PEM) of the authority that signed the server's, where TLS is spoken.
    pub fn authority_certificate(&self) -> Option<PathBuf> {
        self.0.site.options.tls.then(|| self.0.site.folder.join(certificate::AUTHORITY))
    }

    /// Crashes the server: it, its children and its companions are killed.
    pub async fn kill(&self) {
        self.work(|server| server.processes().drain(..).rev().for_each(|mut process| process.crash())).await;
    }

    /// Ends the server as an operator would.
    pub async fn stop(&self) {
        self.work(Server::end).await;
    }

    /// Stops the server where it is: connections stay open, new ones are taken by the system, nobody answers.
    pub async fn pause(&self) {
        self.work(|server| server.processes().iter().rev().for_each(Process::pause)).await;
    }

    /// Lets a paused server go on.
    pub async fn resume(&self) {
        self.work(|server| server.processes().iter().for_each(Process::resume)).await;
    }

    /// Starts the server again on its folder and ports; ends it first if it runs.
    ///
    /// # Errors
    /// The server did not start (with the end of its log).
    pub async fn restart(&self) -> Result<()> {
        let server = self.clone();
        offload(move || {
            server.end();
            server.run_processes()
        })
        .await
    }

    fn end(&self) {
        for mut process in self.processes().drain(..).rev() {
            // A paused one would not hear of it.
            process.resume();
            process.stop(self.service().end_signal(), Duration::from_secs(30));
        }
    }

    fn run_processes(&self) -> Result<()> {
        let site = &self.0.site;
        for Run { program, arguments, environment, is_ready } in (self.recipe().processes)(site) {
            let log = site.folder.join("server.log");
            let launch =
                Launch { program, arguments, environment, account: None, log, lifetime: self.0.lifetime };
            let mut process = Process::start(&launch)?;
            let ready = process.wait_until(Duration::from_secs(120), || is_ready(site));
            self.processes().push(process);
            ready.inspect_err(|_| self.processes().clear())?;
        }
        Ok(())
    }

    async fn work(&self, work: impl FnOnce(&Server) + Send + 'static) {
        let server = self.clone();
        let _never_fails = offload(move || {
            work(&server);
            Ok(())
        })
        .await;
    }

    fn port_of(&self, protocol: &str) -> Option<u16> {
        let place = self.recipe().others.iter().find(|(name, _)| *name == protocol)?.1;
        self.0.site.ports.get(place).copied()
    }

    fn recipe(&self) -> &'static Recipe {
        self.0.broker.recipe()
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        lock(&self.0.processes)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("service", &self.service())
            .field("port", &self.port())
            .field("folder", &self.0.site.folder)
            .finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves the processes as they were.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
