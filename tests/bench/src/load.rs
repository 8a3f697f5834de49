//! What is sent through brokers, and which of it has come.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::Result;

/// How many messages are under way at once.
pub const WINDOW: u64 = 1_024;
/// How many things messages are about.
pub const SUBJECTS: u64 = 1_000;
/// Where the number of a message stands in its body, and where the time at which it was to be sent.
const NUMBER: Range<usize> = 0..8;
const AT: Range<usize> = 8..16;
/// How long nothing may come before messages are called lost.
const SILENCE: Duration = Duration::from_secs(30);

/// Messages of one size.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many.
    pub count: u64,
    /// How long each body is.
    pub bytes: usize,
}

impl Load {
    /// For the page of speeds.
    pub fn size(&self) -> String {
        match self.bytes {
            bytes if bytes.is_multiple_of(1_024) => format!("{} KiB", bytes / 1_024),
            bytes => format!("{bytes} B"),
        }
    }

    /// The numbers of the messages, in windows.
    pub fn windows(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let count = self.count;
        (0..count.div_ceil(WINDOW)).map(move |at| at * WINDOW..((at + 1) * WINDOW).min(count))
    }

    /// The body of a message that is to be sent at a time, in microseconds.
    pub fn body(&self, number: u64, at: u64) -> Bytes {
        let mut body = BytesMut::with_capacity(self.bytes);
        body.put_u64_le(number);
        body.put_u64_le(at);
        body.resize(self.bytes.max(AT.end), b'x');
        body.freeze()
    }

    /// When the message of a body was to be sent; `None` if it is none of the load.
    pub fn sent_at(&self, body: &[u8]) -> Option<u64> {
        word(body, NUMBER).filter(|number| *number < self.count && body.len() == self.bytes)?;
        word(body, AT)
    }
}

/// Which messages have come, and when.
#[derive(Debug)]
pub struct Seen {
    count: u64,
    bytes: usize,
    bits: Vec<AtomicU64>,
    came: AtomicU64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    /// Since when times of bodies are counted, and how old messages were in the order in which they came, in microseconds.
    start: Instant,
    ages: Option<Mutex<Vec<i64>>>,
    whole: Notify,
}

impl Seen {
    /// Nothing yet.
    pub fn nothing(load: Load) -> Self {
        let bits = (0..load.count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            count: load.count,
            bytes: load.bytes,
            bits,
            came: AtomicU64::new(0),
            first: OnceLock::new(),
            last: OnceLock::new(),
            start: Instant::now(),
            ages: None,
            whole: Notify::new(),
        }
    }

    /// The same, with how old messages are when they come.
    pub fn with_ages(mut self) -> Self {
        self.ages = Some(Mutex::default());
        self
    }

    /// The time, as it stands in bodies.
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A message has come.
    ///
    /// # Errors
    /// If it is none of the load.
    pub fn mark(&self, body: &[u8]) -> Result<()> {
        let number = word(body, NUMBER).filter(|number| *number < self.count && body.len() == self.bytes);
        let number = number.ok_or("a message came that was not sent")?;
        let bit = 1 << (number % 64);
        let word_of = usize::try_from(number / 64)?;
        if self.bits[word_of].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Ok(());
        }
        if let Some(ages) = &self.ages {
            let age = self.now().cast_signed() - word(body, AT).unwrap_or_default().cast_signed();
            lock(ages).push(age);
        }
        let came = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        if came == 1 {
            let _ = self.first.set(Instant::now());
        }
        if came == self.count {
            let _ = self.last.set(Instant::now());
            self.whole.notify_one();
        }
        Ok(())
    }

    /// How many different ones have come.
    pub fn came(&self) -> u64 {
        self.came.load(Ordering::Relaxed)
    }

    /// Whether every message has come.
    pub fn is_whole(&self) -> bool {
        self.came() == self.count
    }

    /// Returns when every message has come.
    ///
    /// # Errors
    /// As [`Seen::silent`].
    pub async fn whole(&self) -> Result<()> {
        tokio::select! {
            () = self.whole.notified() => Ok(()),
            silent = self.silent() => silent,
        }
    }

    /// Never returns while messages come.
    ///
    /// # Errors
    /// If nothing comes for a while.
    pub async fn silent(&self) -> Result<()> {
        let mut came = None;
        while came != Some(self.came()) {
            came = Some(self.came());
            sleep(SILENCE).await;
        }
        Err(format!("{} messages came of {}, and then none", self.came(), self.count).into())
    }

    /// How many came a second, from the first to the last.
    pub fn rate(&self) -> f64 {
        let took = self.last.get().zip(self.first.get()).map(|(last, first)| *last - *first);
        self.count as f64 / took.unwrap_or_default().max(Duration::from_micros(1)).as_secs_f64()
    }

    /// How old messages were when they came.
    pub fn ages(&self) -> Vec<i64> {
        self.ages.as_ref().map(|ages| std::mem::take(&mut *lock(ages))).unwrap_or_default()
    }
}

fn word(body: &[u8], place: Range<usize>) -> Option<u64> {
    Some(u64::from_le_bytes(body.get(place)?.try_into().ok()?))
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { count: 2_000, bytes: 512 };

    #[test]
    fn every_number_stands_in_one_window() {
        let windows: Vec<_> = LOAD.windows().collect();
        assert_eq!(windows, [0..1_024, 1_024..2_000]);
        assert_eq!((LOAD.size(), Load { bytes: 8_192, ..LOAD }.size()), ("512 B".into(), "8 KiB".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_twice_counts_once_and_what_is_missing_is_told() {
        let seen = Seen::nothing(LOAD).with_ages();
        for number in (0..2_000).chain(0..1_000).filter(|number| *number != 77) {
            seen.mark(&LOAD.body(number, 0)).unwrap();
        }
        let error = seen.whole().await.unwrap_err().to_string();
        assert_eq!(error, "1999 messages came of 2000, and then none");
        seen.mark(&LOAD.body(77, 0)).unwrap();
        seen.whole().await.unwrap();
        assert_eq!((seen.came(), seen.ages().len()), (2_000, 2_000));
    }

    #[test]
    fn what_was_not_sent_is_refused() {
        let seen = Seen::nothing(LOAD);
        for body in [LOAD.body(2_000, 0), Load { bytes: 511, ..LOAD }.body(1, 0), Bytes::from_static(b"x")] {
            assert!(seen.mark(&body).is_err());
        }
        assert_eq!(seen.came(), 0);
    }
}
