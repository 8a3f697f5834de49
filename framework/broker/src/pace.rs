//! Keeps attempts to connect apart.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::Instant;

use tidegate_core::error::{Error, Result};

/// The shortest and the longest pause behind an attempt that failed; up to as much again is added by chance, so that those who
/// lost their connections together do not come back together.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The attempts of one broker to connect. When one has failed the next one waits, longer each time, and whoever asks meanwhile waits
/// for it, and is told what comes of it: a server that comes back is not met by everybody at the same moment, again and again.
///
/// # Concurrency
/// Used by many tasks at once. As long as nothing fails they connect beside each other, and else one at a time.
///
/// # Cancel safety
/// An attempt may be dropped; it did not fail then.
#[derive(Debug, Default)]
pub struct Pace {
    failed: Mutex<Option<Failed>>,
    /// Counts attempts that ended, of those that others waited for.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct Failed {
    error: Error,
    until: Instant,
    pauses: ExponentialBackoff,
    is_trying: bool,
}

/// What whoever asks has to do first.
enum Turn {
    Now,
    At(Instant),
    /// Another one is at it.
    Behind(watch::Receiver<u64>),
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, Option<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> Turn {
        let mut failed = self.lock();
        let Some(failed) = failed.as_mut() else { return Turn::Now };
        if failed.is_trying {
            return Turn::Behind(self.ended.subscribe());
        }
        if Instant::now() < failed.until {
            return Turn::At(failed.until);
        }
        failed.is_trying = true;
        Turn::Now
    }

    /// Connects, when it is time to.
    ///
    /// # Errors
    /// That of this attempt, or of another one that was waited for.
    pub async fn attempt<T>(&self, connect: impl Future<Output = Result<T>>) -> Result<T> {
        loop {
            match self.turn() {
                Turn::Now => break,
                Turn::At(time) => tokio::time::sleep_until(time).await,
                Turn::Behind(mut ended) => {
                    // It never ends without a word: what ends it says so when it is dropped.
                    let _ = ended.changed().await;
                    if let Some(failed) = self.lock().as_ref().filter(|failed| Instant::now() < failed.until)
                    {
                        return Err(failed.error.again());
                    }
                }
            }
        }
        let _trying = Trying(self);
        let connected = connect.await;
        let mut failed = self.lock();
        *failed = connected.as_ref().err().map(|error| {
            let (least, most) = PAUSES;
            let mut pauses = failed.take().map_or_else(
                || {
                    let pauses = ExponentialBuilder::new().with_min_delay(least).with_max_delay(most);
                    pauses.without_max_times().with_jitter().build()
                },
                |failed| failed.pauses,
            );
            let until = Instant::now() + pauses.next().unwrap_or(most);
            Failed { error: error.again(), until, pauses, is_trying: false }
        });
        drop(failed);
        connected
    }
}

/// Lets the next one try when this one has ended, whatever came of it.
struct Trying<'p>(&'p Pace);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if let Some(failed) = self.0.lock().as_mut() {
            failed.is_trying = false;
        }
        self.0.ended.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use tidegate_core::error::code;

    fn absent() -> Error {
        Error::new(code::UNREACHABLE, "nobody is there")
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_fail_are_apart_however_many_ask() {
        let (pace, asked) = (Pace::default(), AtomicU32::new(0));
        let ask = async || {
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end {
                let attempt = pace.attempt(async {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Err::<(), _>(absent())
                });
                assert_eq!(attempt.await.unwrap_err().message(), "nobody is there");
            }
        };
        tokio::join!(ask(), ask(), ask(), ask());
        let count = asked.load(Ordering::Relaxed);
        assert!((30..=70).contains(&count), "{count} attempts within a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_succeeds_ends_it_and_one_that_is_dropped_keeps_nobody_out() {
        let pace = Pace::default();
        pace.attempt(async { Err::<(), _>(absent()) }).await.unwrap_err();
        // It waits for its turn, and the server is there by then.
        let begin = Instant::now();
        pace.attempt(async { Ok(()) }).await.unwrap();
        assert!(begin.elapsed() >= PAUSES.0 && begin.elapsed() <= PAUSES.0 * 3);
        pace.attempt(async { Err::<(), _>(absent()) }).await.unwrap_err();
        let dropped = pace.attempt(std::future::pending::<Result<()>>());
        assert!(tokio::time::timeout(Duration::from_secs(1), dropped).await.is_err());
        pace.attempt(async { Ok(()) }).await.unwrap();
        // From here on as at first.
        let begin = Instant::now();
        pace.attempt(async { Ok(()) }).await.unwrap();
        assert!(begin.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn as_long_as_nobody_comes_in_one_asks_at_a_time() {
        let pace = Pace::default();
        let slow = |is_there: bool| {
            pace.attempt(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if is_there { Ok(()) } else { Err(absent()) }
            })
        };
        let both = tokio::join!(slow(false), slow(false));
        assert!(both.0.is_err() && both.1.is_err());
        let begin = Instant::now();
        let both = tokio::join!(slow(false), slow(false));
        assert!(both.0.is_err() && both.1.is_err());
        assert!(begin.elapsed() < Duration::from_secs(2), "one of them is told what came of the other's");
        let (first, second) = tokio::join!(slow(true), slow(true));
        assert!(first.is_ok() && second.is_ok(), "the second one connects behind it");
    }
}
