//! Connections.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::config::Config;
use crate::error::from_connect;

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a connection whose answers may take so long.
pub(crate) async fn open(config: &Config, timeout: Duration) -> Result<MultiplexedConnection> {
    let client = client(config)?;
    let settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(timeout));
    let connecting = client.get_multiplexed_async_connection_with_config(&settings);
    config.access.attempt(async { connecting.await.map_err(from_connect) }).await
}

fn client(config: &Config) -> Result<Client> {
    let mut info = RedisConnectionInfo::default().set_db(config.database).set_lib_name("tidegate", "0");
    if let Some(user) = &config.access.user {
        info = info.set_username(user);
    }
    if let Some(password) = &config.access.password {
        info = info.set_password(password);
    }
    let (host, port) = (config.access.host.clone(), config.access.port);
    let address = if config.access.has_tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let invalid = |error| Error::new(code::URL_INVALID, "the redis URL cannot be used").because(error);
    let info = address.into_connection_info().map_err(invalid)?.set_redis_settings(info);
    if !config.access.has_tls {
        return Client::open(info).map_err(invalid);
    }
    Client::build_with_tls(info, config.certificates.clone())
        .map_err(|error| Error::new(code::TLS_FAILED, "the certificates cannot be used").because(error))
}

/// A connection that several tasks use at once; it is made anew when it is lost.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    open: Mutex<Option<MultiplexedConnection>>,
    opening: tokio::sync::Mutex<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<MultiplexedConnection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn get(&self, config: &Config) -> Result<MultiplexedConnection> {
        if let Some(open) = self.lock().clone() {
            return Ok(open);
        }
        // One opens it, and the others wait for that.
        let _opening = self.opening.lock().await;
        if let Some(open) = self.lock().clone() {
            return Ok(open);
        }
        let open = open(config, config.access.timeout).await?;
        *self.lock() = Some(open.clone());
        Ok(open)
    }

    /// Forgets the connection: what is asked for next opens another one.
    pub(crate) fn lose(&self) {
        *self.lock() = None;
    }
}
