//! An ordinary session, for everything but the stream of changes.

use std::ops::{Deref, DerefMut};

use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tokio::task::JoinSet;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::{Client, Config};

use crate::config::Settings;
use crate::error;
use crate::link::{Link, Opened};

/// A session of `tokio-postgres` whose background task lives and dies with it.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    /// Held so that dropping the session ends the task; a set of one, since a bare task would outlive us.
    driver: JoinSet<()>,
}

impl Session {
    /// Connects, proves the role and fixes the settings that change how values are written as text.
    ///
    /// # Errors
    /// `unreachable` when the server does not answer in time, `access-denied` when it refuses the role,
    /// `tls-failed` when it cannot be trusted.
    pub(crate) async fn connect(settings: &Settings) -> Result<Self> {
        within(settings, async {
            let mut config = Config::new();
            config
                .user(&settings.user)
                .dbname(&settings.database)
                .application_name(&settings.application_name);
            if let Some(options) = &settings.options {
                config.options(options);
            }
            if let Some(password) = settings.password.read()? {
                config.password(password);
            }
            let link = Link::open(settings, None).await?;
            // The link is encrypted already: "direct" makes the driver ask the server for nothing more, and
            // "disable" would hide the binding from it.
            config.ssl_mode(if link.is_encrypted() { SslMode::Require } else { SslMode::Disable });
            config.ssl_negotiation(SslNegotiation::Direct);
            let (client, connection) = config
                .connect_raw(link, Opened)
                .await
                .map_err(|error| error::from_driver(error, "connect"))?;
            let mut driver = JoinSet::new();
            driver.spawn(async move {
                // Whoever waits for an answer gets the error too; here it is only a trace.
                if let Err(error) = connection.await {
                    tracing::debug!(error = %error, "a session ended");
                }
            });
            Ok(Self { client, driver })
        })
        .await
    }

    /// Says goodbye and waits until the server has been told.
    pub(crate) async fn close(self) {
        let Self { client, mut driver } = self;
        drop(client);
        while driver.join_next().await.is_some() {}
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connecting has one limit for all its steps, and every error of it names the server.
pub(crate) async fn within<T>(settings: &Settings, connecting: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(settings.connect_timeout, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.with("server", settings)),
        Err(_) => Err(Error::new(code::UNREACHABLE, "the server did not answer in time")
            .with("operation", "connect")
            .with("seconds", settings.connect_timeout.as_secs())
            .with("server", settings)),
    }
}
