//! Connections, and what is asked over them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessageErrorKind;
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectOptions, Event, ServerError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::config::{Config, Login};
use crate::error::{from_connect, from_request, from_server};

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:0";

/// A connection. One that is lost stays lost: what waits in the client would be sent over the next one, behind what got lost
/// of the same lane.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) context: Context,
    /// What the server said last that belongs to no request: what is forbidden, for one.
    said: Arc<Mutex<Option<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let said = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&said);
        let options = options(config)?.event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event {
                *lock(&heard) = Some(text);
            }
            async {}
        });
        let scheme = if config.has_tls { "tls" } else { "nats" };
        let servers: Vec<String> =
            config.servers.iter().map(|server| format!("{scheme}://{server}")).collect();
        // Large, and not to be part of everything that asks for a connection.
        let connecting = Box::pin(async { options.connect(servers).await.map_err(from_connect) });
        let client = config.pace.attempt(connecting).await?;
        let lost = |error| Error::new(code::UNREACHABLE, "the connection was lost at once").because(error);
        client.set_server_pool(NOWHERE).await.map_err(lost)?;
        let context = ContextBuilder::new().timeout(config.timeout).build(client);
        Ok(Self { context, said })
    }

    pub(crate) fn client(&self) -> Client {
        self.context.client()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.client().connection_state() != State::Connected
    }

    /// Says with an error of a request that was not answered what the server said meanwhile.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match lock(&self.said).take() {
            Some(said) if said.to_lowercase().contains("permissions violation") => {
                Error::new(code::ACCESS_DENIED, "the user may not do this").because(said)
            }
            Some(said) => error.with("server", said),
            None => error,
        }
    }

    /// What JetStream answers; its refusal by a code is for the caller.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        subject: &str,
        request: &(impl Serialize + Sync + ?Sized),
        operation: &'static str,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        match self.context.request(subject.to_owned(), request).await {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(self.failed(&error, operation)),
        }
    }

    /// The same, for what is not refused.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        subject: &str,
        request: &(impl Serialize + Sync + ?Sized),
        operation: &'static str,
    ) -> Result<T> {
        self.ask(subject, request, operation).await?.map_err(|error| from_server(&error, operation))
    }

    /// The first message of a subject from a place on, or its last one, as the leader of the stream has it.
    pub(crate) async fn message(
        &self,
        stream: &str,
        subject: &str,
        from: Option<u64>,
        operation: &'static str,
    ) -> Result<Option<StreamMessage>> {
        let invalid = |error| Error::new(code::INTERNAL, "a stream has an unfit name").because(error);
        let stream = self.context.get_stream_no_info(stream).await.map_err(invalid)?;
        let request = stream.raw_message_builder();
        let request = match from {
            Some(from) => request.sequence(from).next_by_subject(subject),
            None => request.last_by_subject(subject),
        };
        match request.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                RawMessageErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    Ok(None)
                }
                RawMessageErrorKind::JetStream(error) => Err(from_server(&error, operation)),
                _ => {
                    let source = std::error::Error::source(&error);
                    match source.and_then(|source| source.downcast_ref()) {
                        Some(error) => Err(self.failed(error, operation)),
                        None => Err(Error::new(code::STREAM_MALFORMED, "an answer cannot be read")
                            .with("operation", operation)
                            .because(error)),
                    }
                }
            },
        }
    }

    fn failed(&self, error: &jetstream::context::RequestError, operation: &'static str) -> Error {
        self.explain(from_request(error, self.client().server_info().jetstream, operation))
    }
}

fn options(config: &Config) -> Result<ConnectOptions> {
    let mut options = ConnectOptions::new()
        .name("tidegate")
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(config.timeout))
        .require_tls(config.has_tls)
        .ignore_discovered_servers()
        .max_reconnects(config.servers.len().max(1));
    options = match &config.login {
        Login::Nobody => options,
        Login::Password { user, password } => options.user_and_password(user.clone(), password.clone()),
        Login::Token(token) => options.token(token.clone()),
        Login::Nkey(seed) => options.nkey(seed.clone()),
        Login::Credentials(text) => {
            let unfit =
                |error| Error::new(code::ACCESS_DENIED, "the file of credentials has none").because(error);
            options.credentials(text).map_err(unfit)?
        }
    };
    let readable = |file: &Path| match std::fs::File::open(file) {
        Ok(_) => Ok(file.to_owned()),
        Err(error) => {
            let text = format!("the certificate or key {} cannot be read", file.display());
            Err(Error::new(code::TLS_FAILED, text).because(error))
        }
    };
    if let Some(file) = &config.ca {
        options = options.add_root_certificates(readable(file)?);
    }
    match &config.certificate {
        (Some(certificate), Some(key)) => {
            options = options.add_client_certificate(readable(certificate)?, readable(key)?);
        }
        (None, None) => {}
        _ => {
            let text = "a client's certificate needs both cert=FILE and key=FILE";
            return Err(Error::new(code::TLS_FAILED, text));
        }
    }
    Ok(options)
}

/// A connection that several tasks use at once; it is made anew when it is lost.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    open: Mutex<Option<Link>>,
    opening: tokio::sync::Mutex<()>,
}

impl Shared {
    fn known(&self) -> Option<Link> {
        lock(&self.open).clone().filter(|link| !link.is_lost())
    }

    pub(crate) async fn get(&self, config: &Config) -> Result<Link> {
        if let Some(open) = self.known() {
            return Ok(open);
        }
        // One opens it, and the others wait for that.
        let _opening = self.opening.lock().await;
        if let Some(open) = self.known() {
            return Ok(open);
        }
        let open = Link::open(config).await?;
        *lock(&self.open) = Some(open.clone());
        Ok(open)
    }

    /// Forgets the connection: what is asked for next opens another one.
    pub(crate) fn lose(&self) {
        *lock(&self.open) = None;
    }
}
