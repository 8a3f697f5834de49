//! Connections.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Channel, Connection, ConnectionProperties};
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, Result};

use crate::config::{Config, GUEST};
use crate::error::{from_connect, from_driver, timed_out};

/// Why nothing that publishes is answered: the server reads no more of a connection that does.
pub(crate) fn blocked() -> Error {
    Error::new(code::LIMIT_REACHED, "the server takes no messages: it is short of memory or disk")
        .hint("look for its alarms: rabbitmq-diagnostics alarms; consumers go on and make room")
}

/// What a call that publishes answers, if it does in time, and if the server takes anything now.
pub(crate) async fn published<T>(
    connection: &Connection,
    time: Duration,
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match within(time, operation, call).await {
        Err(error) if error.code() == code::TIMED_OUT && connection.status().blocked() => {
            Err(blocked().with("operation", operation).verdict_is(Verdict::Unknown))
        }
        answer => answer,
    }
}

/// What a call answers, if it does in time.
pub(crate) async fn within<T>(
    time: Duration,
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(time, call).await {
        Ok(answer) => answer.map_err(|error| from_driver(&error, operation)),
        Err(_) => Err(timed_out(operation)),
    }
}

/// Where the server is, in the driver's words.
pub(crate) fn uri(config: &Config) -> AMQPUri {
    let is_certificate_the_login = config.access.user.is_none() && config.access.certificate.is_some();
    let or_guest = |text: &Option<String>| text.clone().unwrap_or_else(|| GUEST.to_owned());
    AMQPUri {
        scheme: if config.access.has_tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo {
                username: or_guest(&config.access.user),
                password: or_guest(&config.access.password),
            },
            host: config.access.host.clone(),
            port: config.access.port,
        },
        vhost: config.virtual_host.clone(),
        query: AMQPQueryString {
            heartbeat: Some(config.heartbeat()),
            auth_mechanism: is_certificate_the_login.then_some(SASLMechanism::External),
            ..AMQPQueryString::default()
        },
    }
}

/// Opens a connection.
pub(crate) async fn open(config: &Config, purpose: &'static str) -> Result<Connection> {
    let properties =
        ConnectionProperties::default().with_connection_name(format!("tidegate {purpose}").into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| from_connect(&error))?;
    let certificates = config.certificates.clone();
    let connecting = Connection::connect_uri_with_config(uri(config), properties, certificates, runtime);
    let connecting = async {
        match tokio::time::timeout(config.access.timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| from_connect(&error)),
            Err(_) => Err(Error::new(code::UNREACHABLE, "the server does not answer in time")),
        }
    };
    config.access.attempt(connecting).await
}

/// A channel of AMQP that is closed when it is dropped, whatever was on its way over it: a consumer whose request was dropped
/// would stand in its line for ever.
#[derive(Debug)]
pub(crate) struct Own(pub(crate) Channel);

impl Deref for Own {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Sent at once; nobody waits for the answer.
        let _ = self.0.close(200, "it is not needed any more".into()).now_or_never();
    }
}

/// The same of a connection.
#[derive(Debug)]
pub(crate) struct OwnConnection(pub(crate) Connection);

impl Deref for OwnConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        let _ = self.0.close(200, "it is not needed any more".into()).now_or_never();
    }
}

/// A connection that several tasks use at once; it is made anew when it is lost.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    open: Mutex<Option<Arc<Connection>>>,
    opening: tokio::sync::Mutex<()>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> Option<Arc<Connection>> {
        self.lock().clone().filter(|open| open.status().connected())
    }

    pub(crate) async fn get(&self, config: &Config) -> Result<Arc<Connection>> {
        if let Some(open) = self.known() {
            return Ok(open);
        }
        // One opens it, and the others wait for that.
        let _opening = self.opening.lock().await;
        if let Some(open) = self.known() {
            return Ok(open);
        }
        let opened = Arc::new(open(config, "publishing").await?);
        *self.lock() = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// A channel of AMQP for one thing. A connection on which there is no answer is given up: it may be half open.
    pub(crate) async fn channel(&self, config: &Config) -> Result<(Arc<Connection>, Channel)> {
        let mut last = None;
        for _ in 0..2 {
            let connection = self.get(config).await?;
            match within(config.access.timeout, "open a channel of AMQP", connection.create_channel()).await {
                Ok(channel) => return Ok((connection, channel)),
                Err(error) => {
                    self.lose(&connection);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| timed_out("open a channel of AMQP")))
    }

    /// Forgets a connection: what is asked for next opens another one.
    pub(crate) fn lose(&self, lost: &Arc<Connection>) {
        let mut open = self.lock();
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, lost)) {
            *open = None;
        }
    }
}
