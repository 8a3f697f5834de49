//! Connections, and what is asked over them.

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
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, Result};
use tokio::time::Instant;

use crate::config::{Config, Login};
use crate::error::{from_connect, from_request, from_server};

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of what the server says by itself is known.
const SAID_MAX: usize = 256;
/// What stands before all that is asked of JetStream.
pub(crate) const API: &str = "$JS.API.";
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:0";

/// A connection. One that is lost stays lost: what waits in the client would be sent over the next one, behind what got lost
/// of the same lane.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) context: Context,
    /// What the server said that belongs to no request: what is forbidden, for one. Each text once, with when it was said last,
    /// and the latest at the end.
    said: Arc<Mutex<Vec<(Instant, String)>>>,
}

/// Which subject may not be published to, if this is what the server says.
fn forbidden(said: &str) -> Option<&str> {
    const BEGIN: &str = "permissions violation for publish to \"";
    let (begin, subject) = said.split_at_checked(BEGIN.len())?;
    subject.strip_suffix('"').filter(|_| begin.eq_ignore_ascii_case(BEGIN))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) async fn open(config: &Config) -> Result<Self> {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let options = options(config)?.event_callback(move |event| {
            if let Event::ServerError(ServerError::Other(text)) = event {
                hear(&mut lock(&heard), text);
            }
            async {}
        });
        let scheme = if config.access.has_tls { "tls" } else { "nats" };
        let servers: Vec<String> =
            config.servers.iter().map(|server| format!("{scheme}://{server}")).collect();
        let connecting = async { options.connect(servers).await.map_err(from_connect) };
        let client = config.access.attempt(connecting).await?;
        let lost = |error| Error::new(code::UNREACHABLE, "the connection was lost at once").because(error);
        client.set_server_pool(NOWHERE).await.map_err(lost)?;
        let context = ContextBuilder::new().timeout(config.access.timeout).build(client);
        Ok(Self { context, said })
    }

    pub(crate) fn client(&self) -> Client {
        self.context.client()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.client().connection_state() != State::Connected
    }

    /// Says with an error of a request that was not answered what the server has said since then. It was refused only if it is
    /// its subject that may not be published to: whatever else is said, it may have been done.
    pub(crate) fn explain(&self, error: Error, since: Instant, is_its: impl Fn(&str) -> bool) -> Error {
        if error.verdict() != Verdict::Unknown {
            return error;
        }
        let said = lock(&self.said);
        let mut later = said.iter().rev().take_while(|(at, _)| *at >= since).map(|(_, text)| text).peekable();
        let Some(last) = later.peek().copied() else { return error };
        match later.find(|text| forbidden(text).is_some_and(&is_its)) {
            Some(text) => Error::new(code::ACCESS_DENIED, "the user may not do this").because(text.clone()),
            None => error.with("server", last),
        }
    }

    /// What JetStream answers; its refusal by a code is for the caller.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        subject: &str,
        request: &(impl Serialize + Sync + ?Sized),
        operation: &'static str,
    ) -> Result<std::result::Result<T, jetstream::Error>> {
        let since = Instant::now();
        match self.context.request(subject.to_owned(), request).await {
            Ok(Response::Ok(answer)) => Ok(Ok(answer)),
            Ok(Response::Err { error }) => Ok(Err(error)),
            Err(error) => Err(self.failed(&error, since, subject, operation)),
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
        let (since, asked) = (Instant::now(), format!("STREAM.MSG.GET.{stream}"));
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
                        Some(error) => Err(self.failed(error, since, &asked, operation)),
                        None => Err(Error::new(code::STREAM_MALFORMED, "an answer cannot be read")
                            .with("operation", operation)
                            .because(error)),
                    }
                }
            },
        }
    }

    fn failed(
        &self,
        error: &jetstream::context::RequestError,
        since: Instant,
        asked: &str,
        operation: &'static str,
    ) -> Error {
        let error = from_request(error, self.client().server_info().jetstream, operation);
        self.explain(error, since, |subject| subject.strip_prefix(API) == Some(asked))
    }
}

/// Keeps what the server said.
fn hear(said: &mut Vec<(Instant, String)>, text: String) {
    said.retain(|(_, known)| *known != text);
    if said.len() == SAID_MAX {
        said.remove(0);
    }
    said.push((Instant::now(), text));
}

fn options(config: &Config) -> Result<ConnectOptions> {
    let mut options = ConnectOptions::new()
        .name("tidegate")
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(config.access.timeout))
        .require_tls(config.access.has_tls)
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
    if let Some(file) = &config.access.ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &config.access.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_that_is_forbidden_is_read_as_the_server_says_it() {
        for (said, subject) in [
            ("Permissions Violation for Publish to \"tidegate.a.1\"", Some("tidegate.a.1")),
            ("permissions violation for publish to \"tidegate.a.1\"", Some("tidegate.a.1")),
            ("Permissions Violation for Publish to \"", None),
            ("Permissions Violation for Subscription to \"_INBOX.a.*\"", None),
            ("Permissions Violation for Publish with Reply of \"tidegate.a.1\"", None),
            ("ü", None),
        ] {
            assert_eq!(forbidden(said), subject, "{said}");
        }
    }

    #[tokio::test]
    async fn of_what_the_server_says_the_latest_is_kept() {
        let mut said = Vec::new();
        for number in 0..SAID_MAX + 2 {
            hear(&mut said, number.to_string());
            hear(&mut said, "again".to_owned());
        }
        let texts: Vec<&str> = said.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!((said.len(), texts[0], texts[SAID_MAX - 1]), (SAID_MAX, "3", "again"));
    }
}
