//! One server of a broker for many tests.

use tokio::sync::OnceCell;

use super::{Broker, Options, Server, random};
use crate::service::fail;
use crate::{Error, Result, Service, given_url, skipped};

/// The server that tests share: this process's own, or the one that the service's variable names
/// ([`Service::url_variable`]).
#[derive(Debug)]
pub enum Shared {
    /// Started by this process.
    Own(Server),
    /// Somebody else's.
    Given {
        /// What it is.
        service: Service,
        /// Where it is.
        url: String,
    },
}

/// The shared server of a broker, started at the first call; `None` where its service is not in use or skipped by name.
///
/// # Panics
/// Where the server cannot be had and is not skipped: a test without its server fails.
pub async fn shared(broker: Broker) -> Option<&'static Shared> {
    static SHARED: [OnceCell<Shared>; Broker::ALL.len()] =
        [const { OnceCell::const_new() }; Broker::ALL.len()];
    let service = broker.service();
    if skipped(service) {
        return None;
    }
    let start = async || match given_url(service) {
        Some(url) => Ok(Shared::Given { service, url }),
        None => Server::start(broker, Options::default()).await.map(Shared::Own),
    };
    match SHARED[broker as usize].get_or_try_init(start).await {
        Ok(shared) => Some(shared),
        Err(cause) => fail(service, &cause),
    }
}

impl Shared {
    /// Where it is.
    pub fn url(&self) -> String {
        match self {
            Shared::Own(server) => server.url(),
            Shared::Given { url, .. } => url.clone(),
        }
    }

    /// A name for what one test makes there (a channel, a group), which starts with `prefix` and is used by nobody else.
    pub fn name(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}", random())
    }

    /// Crashes the server if it is our own.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub async fn kill(&self) -> Result<()> {
        self.own()?.kill().await;
        Ok(())
    }

    /// Starts the server again if it is our own.
    ///
    /// # Errors
    /// [`Error::NotOurs`], or the server did not start.
    pub async fn restart(&self) -> Result<()> {
        self.own()?.restart().await
    }

    fn own(&self) -> Result<&Server> {
        match self {
            Shared::Own(server) => Ok(server),
            Shared::Given { service, .. } => Err(Error::NotOurs { service: *service }),
        }
    }
}
