//! A replica set of one.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::member::Member;
use super::{Options, admin, set_url};
use crate::offload::offload;
use crate::process::{Background, Lifetime};
use crate::{Error, Result};

/// A server of one's own, a replica set with one member; clones are the same server, and the last one ends it.
#[derive(Debug, Clone)]
pub struct Server(Arc<Member>);

impl Server {
    /// Starts a server; returns when it is the primary.
    ///
    /// # Errors
    /// The service is missing, or the server did not start (with the end of its log).
    pub async fn start(options: Options) -> Result<Server> {
        offload(move || Server::start_blocking(options)).await
    }

    /// [`Server::start`] for programs without a runtime; must not be called inside one.
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
        let url = server.url();
        let member = Arc::into_inner(server.0).ok_or_else(|| Error::failed("the server is in use"))?;
        member.leave(url)
    }

    fn launch(options: Options, lifetime: Lifetime) -> Result<Server> {
        let standalone = options.standalone;
        let member = Member::start(options, lifetime)?;
        if !standalone {
            admin::initiate(&[member.port()])?;
        }
        Ok(Server(Arc::new(member)))
    }

    /// `mongodb://127.0.0.1:port/?replicaSet=rs0`.
    pub fn url(&self) -> String {
        self.database_url("")
    }

    /// The URL with a database, which comes into being at the first write.
    pub fn database_url(&self, database: &str) -> String {
        set_url(&[self.port()], database)
    }

    /// The port on 127.0.0.1, the same after every restart.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// The process of the server while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.0.pid()
    }

    /// The data folder.
    pub fn data_folder(&self) -> PathBuf {
        self.0.folder().join("data")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.0.folder().join("server.log")).unwrap_or_default()
    }

    /// Crashes the server.
    pub async fn kill(&self) {
        let member = Arc::clone(&self.0);
        let _never_fails = offload(move || {
            member.crash();
            Ok(())
        })
        .await;
    }

    /// Ends the server as an operator would.
    pub async fn stop(&self) {
        let member = Arc::clone(&self.0);
        let _never_fails = offload(move || {
            member.stop();
            Ok(())
        })
        .await;
    }

    /// Starts the server again on its folder and port, ends it first if it runs; returns when it is the primary.
    ///
    /// # Errors
    /// The server did not start (with the end of its log).
    pub async fn restart(&self) -> Result<()> {
        let member = Arc::clone(&self.0);
        offload(move || {
            member.stop();
            member.run_process()?;
            admin::wait_for_primary(&[member.port()]).map(drop)
        })
        .await
    }

    /// Puts another replica set at this address: the same port and name, nothing in it; returns when it is the primary.
    ///
    /// # Errors
    /// The server did not start (with the end of its log).
    pub async fn replace(&self) -> Result<()> {
        let member = Arc::clone(&self.0);
        offload(move || {
            member.stop();
            member.empty()?;
            member.run_process()?;
            admin::initiate(&[member.port()])
        })
        .await
    }
}
