//! Connections, sessions and links.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::{BeginError, SessionHandle};
use fe2o3_amqp::types::messaging::{Source, Target};
use fe2o3_amqp::types::primitives::{Array, Symbol};
use fe2o3_amqp::{Receiver, Sender, Session};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tidegate_core::error::code;
use tidegate_core::{Error, Result, Scope};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::error::{Said, from_connect, from_driver, timed_out};
use tidegate_broker::access::Access;

/// How many sessions a connection may have: each lane of a member has two.
const SESSIONS_MAX: u16 = u16::MAX - 1;

/// What stands between a client and who is asked: a queue, of which each message goes to one, or a topic. Without either
/// servers guess, and lose what nobody listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Queue,
    Topic,
}

impl Node {
    fn capability(self) -> Array<Symbol> {
        Array(vec![Symbol::from(match self {
            Self::Queue => "queue",
            Self::Topic => "topic",
        })])
    }
}

/// What a call answers, if it does in time.
pub(crate) async fn within<T, E: Said>(
    time: Duration,
    operation: &'static str,
    call: impl Future<Output = std::result::Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(time, call).await {
        Ok(answer) => answer.map_err(|error| from_driver(&error, operation)),
        Err(_) => Err(timed_out(operation)),
    }
}

/// A name that no other link or container of this process has.
pub(crate) fn unique(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("tidegate {what} {} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection; it ends when it is dropped, with everything on it.
#[derive(Debug)]
pub(crate) struct Connection {
    handle: Arc<tokio::sync::Mutex<ConnectionHandle<()>>>,
    /// What begins sessions and attaches links.
    beginning: Mutex<Scope>,
    timeout: Duration,
}

impl Connection {
    pub(crate) async fn open(access: &Access, purpose: &'static str) -> Result<Self> {
        let connecting = async {
            match tokio::time::timeout(access.timeout, Self::connect(access, purpose)).await {
                Ok(connected) => connected,
                Err(_) => Err(Error::new(code::UNREACHABLE, "the server does not answer in time")),
            }
        };
        access.attempt(connecting).await
    }

    async fn connect(access: &Access, purpose: &'static str) -> Result<Self> {
        let tls = if access.has_tls { Some(tls(access)?) } else { None };
        let unreachable = |error: std::io::Error| from_connect(&error.into());
        let stream = TcpStream::connect((&*access.host, access.port)).await.map_err(unreachable)?;
        // Else each small frame waits for the answer to the one before.
        stream.set_nodelay(true).map_err(unreachable)?;
        match tls {
            None => Self::over(stream, access, purpose).await,
            Some((connector, name)) => {
                let mut stream = connector.connect(name, stream).await.map_err(|error| {
                    Error::new(code::TLS_FAILED, "no trusted connection to the server")
                        .with("operation", "connect")
                        .hint("name the certificate of the server's authority with ?ca=FILE")
                        .because(error)
                })?;
                if access.user.is_none() && access.certificate.is_some() {
                    external(&mut stream).await?;
                }
                Self::over(stream, access, purpose).await
            }
        }
    }

    async fn over<S>(stream: S, access: &Access, purpose: &'static str) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        let lease = u32::try_from(access.settings.lease.as_millis()).unwrap_or(u32::MAX);
        let builder = fe2o3_amqp::Connection::builder()
            .container_id(unique(purpose))
            .hostname(&*access.host)
            .channel_max(SESSIONS_MAX)
            .idle_time_out(lease);
        let builder = match (&access.user, &access.password) {
            (Some(user), Some(password)) => {
                let (username, password) = (user.clone(), password.clone());
                builder.sasl_profile(SaslProfile::Plain { username, password })
            }
            // The certificate was the login.
            _ if access.certificate.is_some() => builder,
            _ => builder.sasl_profile(SaslProfile::Anonymous),
        };
        let handle = builder.open_with_stream(stream).await.map_err(|error| from_connect(&error))?;
        let handle = Arc::new(tokio::sync::Mutex::new(handle));
        Ok(Self { handle, beginning: Mutex::default(), timeout: access.timeout })
    }

    /// Whether it is of use still, as far as can be said: who begins a session finds out.
    fn is_open(&self) -> bool {
        self.handle.try_lock().map_or(true, |handle| !handle.is_closed())
    }

    /// A session; it ends when it is dropped, with every link on it.
    pub(crate) async fn session(&self) -> Result<SessionHandle<()>> {
        let handle = Arc::clone(&self.handle);
        let begun = self.whole(async move { Ok(Session::begin(&mut *handle.lock().await).await) });
        within(self.timeout, "begin a session", async {
            begun.await.unwrap_or(Err(BeginError::IllegalState))
        })
        .await
    }

    /// Does something beside whoever asks, to its end: one who goes away before the server has answered that a session is begun, or
    /// a link attached, would take the connection along, from everybody.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        act: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = oneshot::channel();
        {
            let mut beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
            beginning.reap();
            beginning.spawn(async move {
                let _gone = tell.send(act.await);
                Ok(())
            });
        }
        told.await.unwrap_or_else(|_| Err(Error::new(code::CONNECTION_LOST, "the connection was lost")))
    }
}

/// Ends a session, with every link on it: what came over them and is not settled goes back.
pub(crate) async fn end(
    session: &mut SessionHandle<()>,
    time: Duration,
    operation: &'static str,
) -> Result<()> {
    match tokio::time::timeout(time, session.end()).await {
        Ok(ended) => ended.map_err(|error| {
            let text = "the connection was lost";
            Error::new(code::CONNECTION_LOST, text).with("operation", operation).because(error)
        }),
        Err(_) => Err(timed_out(operation)),
    }
}

/// Takes messages of a queue, as many as there is credit for: none to begin with.
pub(crate) async fn receiver(
    session: &mut SessionHandle<()>,
    node: Node,
    address: String,
    time: Duration,
) -> Result<Receiver> {
    attach(session, Source::builder().address(address).capabilities(node.capability()), time).await
}

/// Takes messages of a queue that is made for this, and goes with it; its name is that of its source then.
pub(crate) async fn reply_receiver(session: &mut SessionHandle<()>, time: Duration) -> Result<Receiver> {
    attach(session, Source::builder().dynamic(true), time).await
}

async fn attach(
    session: &mut SessionHandle<()>,
    source: fe2o3_amqp::types::messaging::SourceBuilder,
    time: Duration,
) -> Result<Receiver> {
    let attaching = Receiver::builder()
        .name(unique("receiver"))
        .source(source.build())
        .credit_mode(CreditMode::Manual)
        .attach(session);
    within(time, "open a receiver", attaching).await
}

/// Sends messages to one address, or each to that which it names.
pub(crate) async fn sender(
    session: &mut SessionHandle<()>,
    node: Node,
    address: Option<&str>,
    time: Duration,
) -> Result<Sender> {
    let mut target = Target::builder().capabilities(node.capability()).build();
    target.address = address.map(str::to_owned);
    let attaching = Sender::builder().name(unique("sender")).target(target).attach(session);
    within(time, "open a sender", attaching).await
}

pub(crate) fn tls(access: &Access) -> Result<(TlsConnector, ServerName<'static>)> {
    let failed = |what: &'static str| Error::new(code::TLS_FAILED, what);
    let unreadable = |file: &Path, error: rustls::pki_types::pem::Error| {
        let text = format!("the certificate or key {} cannot be read", file.display());
        Error::new(code::TLS_FAILED, text).because(error.to_string())
    };
    let chain = |file: &Path| {
        CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .map_err(|error| unreadable(file, error))
    };
    let mut roots = RootCertStore::empty();
    match &access.ca {
        Some(file) => {
            for certificate in chain(file)? {
                roots
                    .add(certificate)
                    .map_err(|error| failed("ca=FILE holds no authority").because(error))?;
            }
        }
        // A system's store may hold single certificates nobody can read; the rest of it is good.
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    // Named and not the process's default, so that a program with a provider of its own keeps it.
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed("no version of TLS can be spoken").because(error))?
        .with_root_certificates(roots);
    let client = match &access.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let own = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error))?;
            builder
                .with_client_auth_cert(chain(certificate)?, own)
                .map_err(|error| failed("cert=FILE and key=FILE do not fit each other").because(error))?
        }
    };
    let name = ServerName::try_from(access.host.clone())
        .map_err(|error| failed("the host is not a name a certificate can hold").because(error))?;
    Ok((TlsConnector::from(Arc::new(client)), name))
}

/// Logs in with the certificate that was shown in the handshake of TLS (SASL EXTERNAL). The driver does that only where it
/// makes the handshake as well, which it does with another library of cryptography than the rest of this program.
async fn external<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<()> {
    const HEADER: &[u8; 8] = b"AMQP\x03\x01\x00\x00";
    // A list (sasl-init): the symbol of the mechanism, and an answer to a question that is not asked then.
    const INIT: &[u8] = b"\x00\x00\x00\x1a\x02\x01\x00\x00\x00\x53\x41\xc0\x0d\x02\xa3\x08EXTERNAL\xa0\x00";
    const FRAME_MAX: usize = 4 << 10;
    async fn frame<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Vec<u8>> {
        let length = stream.read_u32().await? as usize;
        let mut frame = vec![0; length.clamp(4, FRAME_MAX) - 4];
        stream.read_exact(&mut frame).await?;
        Ok(frame)
    }
    let login = async {
        stream.write_all(HEADER).await?;
        stream.flush().await?;
        let mut header = [0; 8];
        stream.read_exact(&mut header).await?;
        let mechanisms = frame(stream).await?;
        let is_offered = mechanisms.windows(8).any(|name| name == b"EXTERNAL");
        if header != *HEADER || !is_offered {
            return Ok::<bool, std::io::Error>(false);
        }
        stream.write_all(INIT).await?;
        stream.flush().await?;
        // A list (sasl-outcome) whose first field is the code: 0 is the only good one.
        let outcome = frame(stream).await?;
        Ok(outcome.get(4..7) == Some(b"\x00\x53\x44") && outcome.windows(2).any(|field| field == b"\x50\x00"))
    };
    match login.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(code::ACCESS_DENIED, "the server lets nobody in by this certificate")
            .with("operation", "connect")),
        Err(error) => Err(from_connect(&error.into())),
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
        self.lock().clone().filter(|open| open.is_open())
    }

    async fn get(&self, access: &Access) -> Result<Arc<Connection>> {
        if let Some(open) = self.known() {
            return Ok(open);
        }
        // One opens it, and the others wait for that.
        let _opening = self.opening.lock().await;
        if let Some(open) = self.known() {
            return Ok(open);
        }
        let opened = Arc::new(Connection::open(access, "publishing").await?);
        *self.lock() = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// A session for one thing. A connection on which there is no answer is given up: it may be half open.
    pub(crate) async fn session(&self, access: &Access) -> Result<(Arc<Connection>, SessionHandle<()>)> {
        let mut last = None;
        for _ in 0..2 {
            let connection = self.get(access).await?;
            match connection.session().await {
                Ok(session) => return Ok((connection, session)),
                Err(error) => {
                    self.lose(&connection);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| timed_out("begin a session")))
    }

    /// Forgets a connection: what is asked for next opens another one.
    pub(crate) fn lose(&self, lost: &Arc<Connection>) {
        let mut open = self.lock();
        if open.as_ref().is_some_and(|open| Arc::ptr_eq(open, lost)) {
            *open = None;
        }
    }
}
