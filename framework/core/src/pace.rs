//! Keeps attempts to connect apart.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::error::{Error, Result};

/// The shortest and the longest pause behind an attempt that failed; up to as much again is added by chance, so that those who
/// lost their connections together do not come back together.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The attempts of one broker to connect. When one has failed the next one waits, longer each time, and whoever asks meanwhile is
/// told the same error at once: a server that comes back is not met by everybody at the same moment, again and again.
///
/// # Concurrency
/// Used by many tasks at once. As long as nothing fails they connect beside each other, and else one at a time.
///
/// # Cancel safety
/// An attempt may be dropped; it did not fail then.
#[derive(Debug, Default)]
pub struct Pace {
    failed: Mutex<Option<Failed>>,
}

#[derive(Debug)]
struct Failed {
    error: Error,
    until: Instant,
    pauses: ExponentialBackoff,
    is_trying: bool,
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, Option<Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, unless an attempt failed a moment ago.
    ///
    /// # Errors
    /// That of this attempt, or of the last one.
    pub async fn attempt<T>(&self, connect: impl Future<Output = Result<T>>) -> Result<T> {
        if let Some(failed) = self.lock().as_mut() {
            if failed.is_trying || Instant::now() < failed.until {
                return Err(failed.error.again());
            }
            failed.is_trying = true;
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
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::code;

    #[tokio::test(start_paused = true)]
    async fn attempts_that_fail_are_apart_and_one_that_succeeds_ends_it() {
        let (pace, asked) = (Pace::default(), AtomicU32::new(0));
        let fail = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(Error::new(code::UNREACHABLE, "nobody is there"))
        };
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            let error = pace.attempt(fail()).await.unwrap_err();
            assert_eq!((error.code(), error.message()), (code::UNREACHABLE, "nobody is there"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let count = asked.load(Ordering::Relaxed);
        assert!((30..=66).contains(&count), "{count} attempts within a minute");
        tokio::time::sleep(PAUSES.1 * 2).await;
        // One that was dropped has not failed, and keeps nobody out.
        let dropped = pace.attempt(std::future::pending::<Result<()>>());
        assert!(tokio::time::timeout(Duration::from_millis(1), dropped).await.is_err());
        pace.attempt(async { Ok(()) }).await.unwrap();
        // From here on as at first.
        pace.attempt(fail()).await.unwrap_err();
        tokio::time::sleep(PAUSES.0 * 2).await;
        pace.attempt(async { Ok(()) }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn as_long_as_nobody_comes_in_one_asks_at_a_time() {
        let pace = Pace::default();
        let slow = |is_there: bool| {
            pace.attempt(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if is_there { Ok(()) } else { Err(Error::new(code::UNREACHABLE, "nobody is there")) }
            })
        };
        let both = tokio::join!(slow(false), slow(false));
        assert!(both.0.is_err() && both.1.is_err());
        tokio::time::sleep(PAUSES.1 * 2).await;
        let (first, second) = tokio::join!(slow(true), slow(true));
        assert!(first.is_ok() && second.is_err(), "the second one is told what is known");
        let (first, second) = tokio::join!(slow(true), slow(true));
        assert!(first.is_ok() && second.is_ok());
    }
}
