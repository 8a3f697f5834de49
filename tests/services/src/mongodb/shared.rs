//! One server for many tests.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::{Options, Server};
use crate::service::fail;
use crate::url::with_database;
use crate::{Error, Result, Service, given_url, skipped};

/// The server that tests share: this process's own, or the one that `TIDEGATE_TEST_MONGODB_URL` names.
#[derive(Debug)]
pub enum Shared {
    /// Started by this process.
    Own(Server),
    /// Somebody else's.
    Given {
        /// Where it is.
        url: String,
    },
}

/// The shared server, started at the first call; `None` where the service is skipped by name.
///
/// # Panics
/// Where the server cannot be had and is not skipped: a test without its server fails.
pub async fn shared() -> Option<&'static Shared> {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    if skipped(Service::Mongodb) {
        return None;
    }
    let start = async || match given_url(Service::Mongodb) {
        Some(url) => Ok(Shared::Given { url }),
        None => Server::start(Options::default()).await.map(Shared::Own),
    };
    match SHARED.get_or_try_init(start).await {
        Ok(shared) => Some(shared),
        Err(cause) => fail(Service::Mongodb, &cause),
    }
}

impl Shared {
    /// The URL without a database.
    pub fn url(&self) -> String {
        match self {
            Shared::Own(server) => server.url(),
            Shared::Given { url } => url.clone(),
        }
    }

    /// The URL of a database for one test, whose name starts with `prefix`; it comes into being at the first write.
    pub fn database(&self, prefix: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        with_database(&self.url(), &name)
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
            Shared::Given { .. } => Err(Error::NotOurs { service: Service::Mongodb }),
        }
    }
}
