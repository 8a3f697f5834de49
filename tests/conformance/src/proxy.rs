//! A network that can be made to fail: between an adapter and its server.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::{Error, Result, Scope};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// How long an answer that is to be lost is let on its way before the connection goes.
const LOST_AFTER: Duration = Duration::from_millis(50);

/// What is done to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// It passes.
    Open,
    /// Nothing passes, and no connection ends: the other side is just not heard any more.
    Silent,
    /// Each piece passes after this time.
    Slow(Duration),
    /// New connections are refused and those that were there are cut.
    Closed,
}

/// The network between an adapter and its server, which can be made to fail.
pub trait Network: Send + Sync {
    /// What becomes of everything from now on.
    fn set(&self, traffic: Traffic);

    /// Cuts every connection that is there.
    fn cut(&self);

    /// Nothing passes over the connections that are there now, until [`set`](Self::set) is called; new ones are as they were.
    fn hang(&self);

    /// How many connections were asked for until now.
    fn attempts(&self) -> u64;

    /// How many connections there are.
    fn connections(&self) -> u64;
}

/// A port of this machine behind which a server is, with a network between the two.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    _scope: Scope,
}

#[derive(Debug)]
struct State {
    target: AtomicU16,
    now: watch::Sender<Now>,
    /// How many connections were asked for.
    attempts: AtomicU64,
    /// How many there are.
    connections: AtomicU64,
    cut: Notify,
    /// What a request has in it whose answer is to be lost.
    marker: Mutex<Vec<u8>>,
    to_lose: AtomicUsize,
}

/// What is done now.
#[derive(Clone, Copy, Debug)]
struct Now {
    traffic: Traffic,
    /// The number of the last connection over which nothing passes.
    hung: u64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, in front of a port of it.
    ///
    /// # Errors
    /// If there is no free port.
    pub async fn start(target: u16) -> Result<Self> {
        let failed = |error: io::Error| Error::new(code::INTERNAL, "no proxy can be started").because(error);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let state = Arc::new(State {
            target: AtomicU16::new(target),
            now: watch::Sender::new(Now { traffic: Traffic::Open, hung: 0 }),
            attempts: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cut: Notify::new(),
            marker: Mutex::default(),
            to_lose: AtomicUsize::new(0),
        });
        let mut scope = Scope::new();
        scope.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { port, state, _scope: scope })
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Leads to another port from now on: a server that tells its clients this one has to be started after it.
    pub fn lead_to(&self, target: u16) {
        self.state.target.store(target, Ordering::Release);
    }

    /// Lets the answers to the next requests get lost that have this in them: each is done, and its connection cut before
    /// the answer is through.
    pub fn lose_answers(&self, marker: impl Into<Vec<u8>>, count: usize) {
        *self.state.marker.lock().unwrap_or_else(PoisonError::into_inner) = marker.into();
        self.state.to_lose.store(count, Ordering::Release);
    }
}

impl Network for Proxy {
    fn set(&self, traffic: Traffic) {
        self.state.now.send_replace(Now { traffic, hung: 0 });
        if traffic == Traffic::Closed {
            self.cut();
        }
    }

    fn cut(&self) {
        self.state.cut.notify_waiters();
    }

    fn hang(&self) {
        let hung = self.attempts();
        self.state.now.send_modify(|now| now.hung = hung);
    }

    fn attempts(&self) -> u64 {
        self.state.attempts.load(Ordering::Acquire)
    }

    fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Acquire)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) -> Result<()> {
    let mut connections = Scope::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        connections.reap();
        let number = state.attempts.fetch_add(1, Ordering::AcqRel) + 1;
        if state.now.borrow().traffic == Traffic::Closed {
            continue;
        }
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // How it ended is the two sides' business.
            state.connections.fetch_add(1, Ordering::AcqRel);
            let _ = carry(client, &state, number).await;
            state.connections.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        });
    }
}

async fn carry(client: TcpStream, state: &State, number: u64) -> io::Result<()> {
    let cut = state.cut.notified();
    let target = SocketAddr::from(([127, 0, 0, 1], state.target.load(Ordering::Acquire)));
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_lost = watch::Sender::new(false);
    tokio::select! {
        ended = requests(from_client, to_server, state, number, &is_lost) => ended,
        ended = answers(from_server, to_client, state, number, is_lost.subscribe()) => ended,
        () = cut => Ok(()),
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    number: u64,
    is_lost: &watch::Sender<bool>,
) -> io::Result<()> {
    let (mut piece, mut tail) = (vec![0; 64 << 10], Vec::new());
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        pass(state, number).await;
        let marker = state.marker.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !marker.is_empty() {
            // It may stand across two pieces.
            tail.extend_from_slice(&piece[..count]);
            let is_there = tail.windows(marker.len()).any(|part| part == marker);
            let less = |left: usize| left.checked_sub(1);
            if is_there && state.to_lose.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
                is_lost.send_replace(true);
            }
            let keep = if is_there { 0 } else { tail.len().min(marker.len() - 1) };
            tail.drain(..tail.len() - keep);
        }
        to.write_all(&piece[..count]).await?;
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    number: u64,
    mut is_lost: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = tokio::select! {
            biased;
            () = lost(&mut is_lost) => {
                tokio::time::sleep(LOST_AFTER).await;
                return Ok(());
            }
            count = from.read(&mut piece) => count?,
        };
        if count == 0 {
            return Ok(());
        }
        pass(state, number).await;
        if *is_lost.borrow() {
            continue;
        }
        to.write_all(&piece[..count]).await?;
    }
}

/// Returns when an answer is to be lost.
async fn lost(is_lost: &mut watch::Receiver<bool>) {
    if is_lost.wait_for(|lost| *lost).await.is_err() {
        // Nobody asks any more: the connection ends.
        std::future::pending::<()>().await;
    }
}

/// Returns when a piece of a connection may pass.
async fn pass(state: &State, number: u64) {
    let mut now = state.now.subscribe();
    let is_silent = |now: &Now| now.traffic == Traffic::Silent || number <= now.hung;
    // Whoever sets it lives longer than the connection.
    let traffic = now.wait_for(|now| !is_silent(now)).await.map_or(Traffic::Closed, |now| now.traffic);
    if let Traffic::Slow(time) = traffic {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every piece with itself.
    async fn echo(scope: &mut Scope) -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        scope.spawn(async move {
            let mut connections = Scope::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut piece = [0; 100];
                    while let Ok(count @ 1..) = client.read(&mut piece).await {
                        client.write_all(&piece[..count]).await.unwrap();
                    }
                    Ok(())
                });
            }
            Ok(())
        });
        port
    }

    async fn ask(client: &mut TcpStream, what: &[u8]) -> Option<Vec<u8>> {
        client.write_all(what).await.ok()?;
        let mut answer = vec![0; 100];
        let read = tokio::time::timeout(Duration::from_millis(300), client.read(&mut answer)).await;
        answer.truncate(read.ok()?.ok()?);
        Some(answer)
    }

    #[tokio::test]
    async fn what_passes_can_be_cut_lost_slowed_and_silenced() {
        let mut scope = Scope::new();
        let proxy = Proxy::start(echo(&mut scope).await).await.unwrap();
        let connect = async || TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        let mut first = connect().await;
        assert_eq!(ask(&mut first, b"one").await.as_deref(), Some(&b"one"[..]));
        proxy.cut();
        assert_eq!(ask(&mut first, b"two").await.unwrap_or_default(), b"", "it is cut");

        let mut second = connect().await;
        proxy.lose_answers("mark", 1);
        assert_eq!(ask(&mut second, b"plain").await.as_deref(), Some(&b"plain"[..]));
        second.write_all(b"xxma").await.unwrap();
        assert_eq!(ask(&mut second, b"").await.as_deref(), Some(&b"xxma"[..]));
        assert_eq!(ask(&mut second, b"rk").await.unwrap_or_default(), b"", "its answer is lost");
        let mut third = connect().await;
        assert_eq!(ask(&mut third, b"mark").await.as_deref(), Some(&b"mark"[..]), "one is lost and no more");

        proxy.set(Traffic::Silent);
        assert_eq!(ask(&mut third, b"hello").await, None);
        proxy.set(Traffic::Slow(Duration::from_millis(20)));
        assert_eq!(ask(&mut third, b"").await.as_deref(), Some(&b"hello"[..]));
        proxy.set(Traffic::Open);
        proxy.hang();
        let mut new = connect().await;
        assert_eq!(ask(&mut third, b"hung").await, None);
        assert_eq!(ask(&mut new, b"new").await.as_deref(), Some(&b"new"[..]), "what is new passes");
        proxy.set(Traffic::Open);
        assert_eq!(ask(&mut third, b"").await.as_deref(), Some(&b"hung"[..]));
        assert_eq!(proxy.attempts(), 4);
        assert_eq!(proxy.connections(), 2, "two were cut");
        proxy.set(Traffic::Closed);
        let mut fourth = connect().await;
        assert_eq!(ask(&mut fourth, b"x").await.unwrap_or_default(), b"");
    }
}
