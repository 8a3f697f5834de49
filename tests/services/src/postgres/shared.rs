//! One server for many tests.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::{Options, Server, install, psql};
use crate::offload::offload;
use crate::service::fail;
use crate::url::with_database;
use crate::{Error, Result, Service, given_url, skipped};

/// The server that tests share: this process's own, or the one that `TIDEGATE_TEST_POSTGRES_URL` names.
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
    if skipped(Service::Postgresql) {
        return None;
    }
    let start = async || match given_url(Service::Postgresql) {
        Some(url) => Ok(Shared::Given { url }),
        None => Server::start(Options::default()).await.map(Shared::Own),
    };
    match SHARED.get_or_try_init(start).await {
        Ok(shared) => Some(shared),
        Err(cause) => fail(Service::Postgresql, &cause),
    }
}

impl Shared {
    /// The URL of the database `postgres`, or the given one.
    pub fn url(&self) -> String {
        match self {
            Shared::Own(server) => server.url(),
            Shared::Given { url } => url.clone(),
        }
    }

    /// Creates a database for one test, whose name starts with `prefix` and is used by nobody else; gives its URL.
    ///
    /// # Errors
    /// What the server said.
    pub async fn create_database(&self, prefix: &str) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        match self {
            Shared::Own(server) => server.create_database(&name).await,
            Shared::Given { url } => {
                let url = url.clone();
                offload(move || {
                    let quoted = name.replace('"', "\"\"");
                    // A process before us may have had our id; what it left is of no use to anybody.
                    let programs = install::programs()?;
                    psql(&programs, &url, &format!("DROP DATABASE IF EXISTS \"{quoted}\" WITH (FORCE)"))?;
                    psql(&programs, &url, &format!("CREATE DATABASE \"{quoted}\""))?;
                    Ok(with_database(&url, &name))
                })
                .await
            }
        }
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
            Shared::Given { .. } => Err(Error::NotOurs { service: Service::Postgresql }),
        }
    }
}
