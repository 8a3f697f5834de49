//! The connection itself: a socket, TLS where it is asked for, and reading in gulps.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use crate::config::{Host, Settings};
use crate::error;
use crate::tls;
use crate::wire::gulp::{Gulp, Park};

/// A peer that vanished without a word is noticed after about a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Room for what a server on the same machine sends while nobody reads.
const LOCAL_BUFFER_BYTES: usize = 64 * 1024;

/// An open connection, encrypted or not, before anybody has said who they are.
#[derive(Debug)]
pub(crate) struct Link {
    io: Io,
    /// What ties a proof of the password to the server's certificate.
    end_point: Option<Vec<u8>>,
    /// Whether nobody on the way can read what is said.
    private: bool,
}

#[derive(Debug)]
enum Io {
    Plain(Gulp<Parkable>),
    Encrypted(Box<tokio_rustls::client::TlsStream<Gulp<Parkable>>>),
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Link {
    /// Opens a connection; a `pause` makes it read in gulps (see [`Gulp`]).
    pub(crate) async fn open(settings: &Settings, pause: Option<Duration>) -> Result<Self> {
        let tls = tls::config(settings)?;
        let socket = Socket::open(&settings.host).await.map_err(error::from_connect)?;
        if pause.is_some() {
            // It is faster with it, and right without.
            if let Err(error) = socket.let_the_sender_queue() {
                tracing::debug!(%error, "the connection keeps the system's receive buffer");
            }
        }
        let socket = Gulp::new(Parkable::Open(socket), pause);
        let local = settings.host.is_local();
        let Some((config, name)) = tls else {
            return Ok(Self { io: Io::Plain(socket), end_point: None, private: local });
        };
        let socket = ask_for_tls(socket).await?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(error::from_connect)?;
        let (_, session) = stream.get_ref();
        let end_point = session
            .peer_certificates()
            .and_then(|certificates| certificates.first())
            .and_then(|certificate| tls::end_point(certificate));
        Ok(Self { io: Io::Encrypted(Box::new(stream)), end_point, private: true })
    }

    /// What a proof of the password can be bound to.
    pub(crate) fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    /// Whether nobody on the way can read what is said.
    pub(crate) fn is_private(&self) -> bool {
        self.private
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self.io, Io::Encrypted(_))
    }
}

/// Asks whether the server speaks TLS, and takes no for an error.
async fn ask_for_tls(mut socket: Gulp<Parkable>) -> Result<Gulp<Parkable>> {
    let mut request = BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(error::from_connect)?;
    socket.flush().await.map_err(error::from_connect)?;
    let answer = socket.read_u8().await.map_err(error::from_connect)?;
    // Bytes beyond the answer were sent before the handshake and could be anybody's (CVE-2021-23222).
    if answer == b'S' && socket.is_drained() {
        return Ok(socket);
    }
    Err(Error::new(code::TLS_FAILED, "the server does not speak TLS")
        .hint("turn ssl on at the server, or accept plain text with sslmode=disable"))
}

impl Socket {
    /// On one machine what a server sends is carried to our buffer by the sending call itself, piece by piece. Where there is
    /// little room it waits in the server's buffer, and comes in large parts, carried by our reading.
    fn let_the_sender_queue(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) if stream.peer_addr()?.ip().is_loopback() => {
                SockRef::from(stream).set_recv_buffer_size(LOCAL_BUFFER_BYTES)
            }
            Self::Tcp(_) | Self::Unix(_) => Ok(()),
        }
    }

    async fn open(host: &Host) -> io::Result<Self> {
        match host {
            Host::Tcp(name, port) => {
                let stream = TcpStream::connect((name.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Self::Tcp(stream))
            }
            Host::Socket(folder, port) => {
                UnixStream::connect(Host::socket_file(folder, *port)).await.map(Self::Unix)
            }
        }
    }
}

/// A socket that the runtime watches, or does not for a while.
#[derive(Debug)]
enum Parkable {
    Open(Socket),
    Parked(Parked),
    /// It could not be taken from the runtime, or given back.
    Lost,
}

#[derive(Debug)]
enum Parked {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Parkable {
    /// The socket, watched.
    fn wake(&mut self) -> io::Result<&mut Socket> {
        if matches!(self, Self::Parked(_)) {
            *self = match std::mem::replace(self, Self::Lost) {
                Self::Parked(Parked::Tcp(stream)) => Self::Open(Socket::Tcp(TcpStream::from_std(stream)?)),
                Self::Parked(Parked::Unix(stream)) => Self::Open(Socket::Unix(UnixStream::from_std(stream)?)),
                other => other,
            };
        }
        match self {
            Self::Open(socket) => Ok(socket),
            Self::Parked(_) | Self::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Park for Parkable {
    fn park(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Lost) {
            Self::Open(Socket::Tcp(stream)) => Self::Parked(Parked::Tcp(stream.into_std()?)),
            Self::Open(Socket::Unix(stream)) => Self::Parked(Parked::Unix(stream.into_std()?)),
            other => other,
        };
        Ok(())
    }
}

/// Forwards reading and writing to whichever variant is there.
macro_rules! forward {
    ($type:ty, $self:ident => $field:expr, $($variant:path),+) => {
        impl AsyncRead for $type {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $field { $($variant(stream) => Pin::new(stream).poll_read(cx, buf)),+ }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                match $field { $($variant(stream) => Pin::new(stream).poll_write(cx, buf)),+ }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $field { $($variant(stream) => Pin::new(stream).poll_flush(cx)),+ }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $field { $($variant(stream) => Pin::new(stream).poll_shutdown(cx)),+ }
            }
        }
    };
}

forward!(Parkable, this => this.wake()?, Socket::Tcp, Socket::Unix);
forward!(Link, this => &mut this.io, Io::Plain, Io::Encrypted);

/// For tokio-postgres a link is a finished "TLS stream": it then only asks for the binding.
impl TlsStream for Link {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.end_point {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.clone()),
            None => ChannelBinding::none(),
        }
    }
}

/// Hands tokio-postgres the link as it is, since the handshake is behind us.
pub(crate) struct Opened;

impl TlsConnect<Link> for Opened {
    type Stream = Link;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Link, Self::Error>>;

    fn connect(self, link: Link) -> Self::Future {
        std::future::ready(Ok(link))
    }
}
