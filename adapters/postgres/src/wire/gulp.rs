//! Reading in gulps.
//!
//! A walsender sends one small piece per row as long as its socket has room, and batches only when it has none.
//! A reader that answers each piece at once therefore makes both sides pay a system call (and with TLS a record)
//! per row. Coming back a little later, by timer, lets the server fill the socket: half the time for both sides.
//! Meanwhile the socket is taken from the runtime: each piece that arrives would wake it, and the waking is done by
//! the server's send. This has to stand under TLS, where the pieces are; above it the records are made already.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Room for what arrives during a pause.
const BUFFER_BYTES: usize = 512 * 1024;

/// Only who received this much within one [`WINDOW`] pauses, so that a quiet stream is answered at once.
const BUSY_BYTES: usize = 16 * 1024;
const WINDOW: Duration = Duration::from_millis(20);

/// A read that gives more than this is followed by another one at once: more may be waiting at the sender.
const SHORT_BYTES: usize = 16 * 1024;

/// A stream that can be left alone.
pub(crate) trait Park {
    /// Until somebody reads or writes nobody is woken by what arrives: each wake-up costs time, the sender's too.
    fn park(&mut self) -> io::Result<()>;
}

/// A stream that, when busy, waits a little before it reads again.
///
/// Dropping a read loses nothing: the pause and what has been received live here.
pub(crate) struct Gulp<S> {
    stream: S,
    /// Without one, reads and writes pass through untouched.
    pausing: Option<Pausing>,
}

struct Pausing {
    pause: Duration,
    timer: Pin<Box<Sleep>>,
    /// The timer is set and nothing is read until it fires.
    waiting: bool,
    received: Box<[u8]>,
    /// The part of `received` that nobody has taken yet.
    start: usize,
    end: usize,
    window_start: Instant,
    window_bytes: usize,
}

impl<S> Gulp<S> {
    pub(crate) fn new(stream: S, pause: Option<Duration>) -> Self {
        let pausing = pause.filter(|pause| !pause.is_zero()).map(|pause| Pausing {
            pause,
            timer: Box::pin(sleep(Duration::ZERO)),
            waiting: false,
            received: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            window_start: Instant::now(),
            window_bytes: 0,
        });
        Self { stream, pausing }
    }

    /// Whether everything received has been taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.pausing.as_ref().is_none_or(|pausing| pausing.start == pausing.end)
    }
}

impl Pausing {
    /// Counts what came, and decides whether to come back by timer.
    fn account(&mut self, bytes: usize) {
        let now = Instant::now();
        if now - self.window_start > WINDOW.max(self.pause * 2) {
            self.window_start = now;
            self.window_bytes = 0;
        }
        self.window_bytes += bytes;
        if self.window_bytes > BUSY_BYTES && bytes < SHORT_BYTES {
            self.window_start = now;
            self.window_bytes = 0;
            self.timer.as_mut().reset(now + self.pause);
            self.waiting = true;
        }
    }
}

impl<S: AsyncRead + Park + Unpin> AsyncRead for Gulp<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(pausing) = &mut this.pausing else { return Pin::new(&mut this.stream).poll_read(cx, buf) };
        if pausing.start == pausing.end {
            if pausing.waiting {
                ready!(pausing.timer.as_mut().poll(cx));
                pausing.waiting = false;
            }
            let mut received = ReadBuf::new(&mut pausing.received);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut received))?;
            (pausing.start, pausing.end) = (0, received.filled().len());
            pausing.account(pausing.end);
            if pausing.waiting {
                this.stream.park()?;
            }
        }
        let part = (pausing.end - pausing.start).min(buf.remaining());
        buf.put_slice(&pausing.received[pausing.start..pausing.start + part]);
        pausing.start += part;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gulp<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: fmt::Debug> fmt::Debug for Gulp<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gulp")
            .field("stream", &self.stream)
            .field("pause", &self.pausing.as_ref().map(|pausing| pausing.pause))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const PAUSE: Duration = Duration::from_millis(15);

    impl Park for tokio::io::DuplexStream {
        fn park(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Time stands still except where a timer is waited for, so elapsed time is the time paused.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_is_read_at_once_and_a_busy_one_after_a_pause() {
        let (mut server, client) = duplex(1024 * 1024);
        let mut client = Gulp::new(client, Some(PAUSE));
        let mut buffer = vec![0; 64 * 1024];
        let begin = Instant::now();
        for _ in 0..10 {
            server.write_all(&[1; 1000]).await.unwrap();
            assert_eq!(client.read(&mut buffer).await.unwrap(), 1000);
        }
        assert_eq!(begin.elapsed(), Duration::ZERO, "10 kB is not busy");

        for bytes in [20_000, 10] {
            server.write_all(&vec![1; bytes]).await.unwrap();
            assert_eq!(client.read(&mut buffer).await.unwrap(), bytes);
            assert_eq!(begin.elapsed(), Duration::ZERO, "what is there is given before the pause");
        }
        server.write_all(&[1; 10]).await.unwrap();
        assert_eq!(client.read(&mut buffer).await.unwrap(), 10);
        assert!(begin.elapsed() >= PAUSE, "the next read comes by timer");

        // A trickle never adds up to being busy.
        let begin = Instant::now();
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            server.write_all(&[1; 1000]).await.unwrap();
            client.read_exact(&mut buffer[..1000]).await.unwrap();
        }
        assert!(begin.elapsed() < Duration::from_millis(5100), "{:?}", begin.elapsed());
    }

    /// Every read is dropped after at most a millisecond; the bytes still come complete and in order.
    #[tokio::test(start_paused = true)]
    async fn a_dropped_read_loses_nothing() {
        let (mut server, client) = duplex(64 * 1024);
        let mut client = Gulp::new(client, Some(PAUSE));
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        let copy = sent.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            for piece in copy.chunks(777) {
                server.write_all(piece).await.unwrap();
            }
        });
        let mut seen: Vec<u8> = Vec::new();
        let mut buffer = [0; 5000];
        while seen.len() < sent.len() {
            if let Ok(read) = tokio::time::timeout(Duration::from_millis(1), client.read(&mut buffer)).await {
                let bytes = read.unwrap();
                assert!(bytes > 0);
                seen.extend(&buffer[..bytes]);
            }
        }
        assert!(seen == sent);
    }

    #[tokio::test]
    async fn the_end_is_an_end() {
        let (server, client) = duplex(16);
        drop(server);
        assert_eq!(Gulp::new(client, Some(PAUSE)).read(&mut [0; 8]).await.unwrap(), 0);
    }
}
