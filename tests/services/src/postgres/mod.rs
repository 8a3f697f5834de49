//! PostgreSQL servers with logical replication switched on.

mod install;
mod options;
mod shared;
mod template;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::account::Account;
use crate::certificate;
use crate::debian::run;
use crate::folder::Folder;
use crate::offload::offload;
use crate::port::Port;
use crate::process::{Background, Launch, Lifetime, Process};
use crate::{Error, Result, Service};
use install::Programs;
use template::SUPERUSER;

pub(crate) use install::{locate, provision};
pub use options::{Options, Tls};
pub use shared::{Shared, shared};

/// The path of a program that comes with the server: `psql`, `pg_recvlogical`.
///
/// # Errors
/// The service is missing.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(install::programs()?.path(name))
}

/// A server of one's own; clones are the same server, and the last one ends it.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    programs: Programs,
    account: Option<Account>,
    options: Options,
    lifetime: Lifetime,
    port: Port,
    // Dropped in this order: the process ends before its folder goes.
    process: Mutex<Option<Process>>,
    folder: Mutex<Folder>,
    path: PathBuf,
}

impl Server {
    /// Starts a server; returns when it takes connections.
    ///
    /// # Errors
    /// The service is missing, or the server did not start (with the end of its log).
    pub async fn start(options: Options) -> Result<Server> {
        offload(move || Server::start_blocking(options)).await
    }

    /// [`Server::start`] for programs without a runtime.
    ///
    /// # Errors
    /// As there.
    pub fn start_blocking(options: Options) -> Result<Server> {
        Server::launch(options, Lifetime::Process)
    }

    /// Starts a server that goes on after this process.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_in_background(options: Options) -> Result<Background> {
        let server = Server::launch(options, Lifetime::Background)?;
        let process = server.process().take().ok_or_else(|| Error::failed("the server is not running"))?;
        lock(&server.0.folder).keep();
        let background = Background {
            service: Service::Postgresql,
            pid: process.pid(),
            url: server.url(),
            folder: server.folder().to_owned(),
        };
        process.leave();
        Ok(background)
    }

    fn launch(options: Options, lifetime: Lifetime) -> Result<Server> {
        let programs = install::programs()?;
        let account = Account::for_servers()?;
        let folder = Folder::create(Service::Postgresql, account, lifetime)?;
        let data = folder.path().join("data");
        template::fill(&programs, &data, account, options.fresh_identity)?;
        if options.tls != Tls::Off {
            certificate::write(folder.path(), &data, account)?;
        }
        let port = Port::reserve()?;
        let write = |name: &str, text: String| {
            fs::write(data.join(name), text).map_err(Error::io(format!("{name} could not be written")))
        };
        write("pg_hba.conf", options.access())?;
        let sockets = data.display().to_string();
        let configuration =
            fs::read_to_string(data.join("postgresql.conf")).map_err(Error::io("postgresql.conf"))?;
        write("postgresql.conf", configuration + &options.configuration(port.number, &sockets))?;
        let path = folder.path().to_owned();
        let (folder, process) = (Mutex::new(folder), Mutex::new(None));
        let server =
            Server(Arc::new(Inner { programs, account, options, lifetime, port, process, folder, path }));
        server.run_process()?;
        if let Some(password) = &server.0.options.password {
            let password = password.replace('\'', "''");
            server.sql_over_socket(&format!("ALTER ROLE {SUPERUSER} PASSWORD '{password}'"))?;
        }
        Ok(server)
    }

    /// `postgres://user@127.0.0.1:port/postgres`, with the password where there is one.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// The URL of another database of this server.
    pub fn database_url(&self, database: &str) -> String {
        let password = self.0.options.password.as_ref().map(|text| format!(":{text}")).unwrap_or_default();
        format!("postgres://{SUPERUSER}{password}@127.0.0.1:{}/{database}", self.port())
    }

    /// The port on 127.0.0.1, the same after every restart.
    pub fn port(&self) -> u16 {
        self.0.port.number
    }

    /// The process of the server while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.process().as_ref().map(Process::pid)
    }

    /// The data folder.
    pub fn data_folder(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("server.log")).unwrap_or_default()
    }

    /// The certificate (PEM) of the authority that signed the server's, where TLS is spoken.
    pub fn authority_certificate(&self) -> Option<PathBuf> {
        (self.0.options.tls != Tls::Off).then(|| self.folder().join(certificate::AUTHORITY))
    }

    /// Crashes the whole server: the postmaster and its children are killed at one instant.
    pub async fn kill(&self) {
        let server = self.clone();
        let _never_fails = offload(move || {
            if let Some(mut process) = server.process().take() {
                process.crash();
            }
            Ok(())
        })
        .await;
    }

    /// Ends the server as an operator would (fast shutdown).
    pub async fn stop(&self) {
        let server = self.clone();
        let _never_fails = offload(move || {
            if let Some(mut process) = server.process().take() {
                process.stop(Service::Postgresql.end_signal(), Duration::from_secs(30));
            }
            Ok(())
        })
        .await;
    }

    /// Starts the server again on its folder and port; ends it first if it runs.
    ///
    /// # Errors
    /// The server did not start (with the end of its log).
    pub async fn restart(&self) -> Result<()> {
        self.stop().await;
        let server = self.clone();
        offload(move || server.run_process()).await
    }

    /// Creates a database and gives its URL.
    ///
    /// # Errors
    /// What the server said.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        let (server, name) = (self.clone(), name.to_owned());
        offload(move || {
            server.sql_over_socket(&format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")))?;
            Ok(server.database_url(&name))
        })
        .await
    }

    /// Runs statements as the superuser in the database `postgres`, outside a transaction, and gives what `psql` prints.
    ///
    /// # Errors
    /// What the server said.
    pub async fn sql(&self, statement: &str) -> Result<String> {
        let (server, statement) = (self.clone(), statement.to_owned());
        offload(move || server.sql_over_socket(&statement)).await
    }

    fn sql_over_socket(&self, statement: &str) -> Result<String> {
        let target = format!(
            "host={} port={} user={SUPERUSER} dbname=postgres",
            self.data_folder().display(),
            self.port()
        );
        psql(&self.0.programs, &target, statement)
    }

    fn run_process(&self) -> Result<()> {
        let data = self.data_folder();
        // Whoever wrote it is gone, and its pid may be somebody else's by now.
        let _absent = fs::remove_file(data.join("postmaster.pid"));
        let launch = Launch {
            program: self.0.programs.path("postgres"),
            arguments: vec!["-D".to_owned(), data.display().to_string()],
            environment: Vec::new(),
            account: self.0.account,
            log: self.folder().join("server.log"),
            lifetime: self.0.lifetime,
        };
        let mut process = Process::start(&launch)?;
        process.wait_until(Duration::from_secs(60), || {
            fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| is_ready(&text))
        })?;
        *self.process() = Some(process);
        Ok(())
    }

    fn folder(&self) -> &Path {
        &self.0.path
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.0.process)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("port", &self.port())
            .field("folder", &self.folder())
            .finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves the process as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The eighth line of `postmaster.pid` says how far the server is.
fn is_ready(postmaster: &str) -> bool {
    postmaster.lines().nth(7).is_some_and(|status| status.trim() == "ready")
}

/// Runs statements with `psql`, which needs no driver; `target` is a URL or a connection string.
fn psql(programs: &Programs, target: &str, statement: &str) -> Result<String> {
    let quiet = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"];
    run(Command::new(programs.path("psql")).args(quiet).args(["--command", statement, target]))
}
