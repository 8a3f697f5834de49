//! What happens to a message whose handler fails.

use std::time::Duration;

use tidegate_core::Message;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What happens when a message has been tried often enough, or will fail for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// It becomes a dead letter, and so do all later ones of its subject, until they are replayed in their order. Other
    /// subjects flow.
    ParkKey,
    /// It is tried for ever. Its subject waits; others flow.
    Block,
    /// It becomes a dead letter, and the later ones of its subject go on without it.
    Skip,
}

/// How often a message is tried, how long it waits between, and what then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// How often it is tried, the first time included.
    pub attempts_max: u32,
    /// The longest pause behind the first failure. It doubles with each.
    pub pause_min: Duration,
    /// The longest pause of all.
    pub pause_max: Duration,
    /// How long one attempt may take.
    pub time_limit: Duration,
    /// What then.
    pub exhausted: Exhausted,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            pause_min: Duration::from_millis(200),
            pause_max: Duration::from_secs(60),
            time_limit: Duration::from_secs(60),
            exhausted: Exhausted::ParkKey,
        }
    }
}

impl Policy {
    /// Five attempts, then the message and all later ones of its subject wait among the dead letters.
    pub fn park_key() -> Self {
        Self::default()
    }

    /// Tries for ever, with at most a minute between.
    pub fn block() -> Self {
        Self { exhausted: Exhausted::Block, ..Self::default() }
    }

    /// Five attempts, then the message alone is put among the dead letters.
    pub fn skip() -> Self {
        Self { exhausted: Exhausted::Skip, ..Self::default() }
    }

    /// Tries so often, the first time included; at least once.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts_max = attempts.max(1);
        self
    }

    /// Waits at most `min` behind the first failure, twice as long behind each further one, and never longer than `max`.
    #[must_use]
    pub fn with_pauses(mut self, min: Duration, max: Duration) -> Self {
        (self.pause_min, self.pause_max) = (min, max.max(min));
        self
    }

    /// Ends an attempt that takes longer. It counts as failed, though it may have had its effect.
    #[must_use]
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Whether a message that failed in this attempt, and may succeed later, is tried again.
    pub(crate) fn tries_again(&self, attempt: u32) -> bool {
        self.exhausted == Exhausted::Block || attempt < self.attempts_max
    }

    /// How long a message waits behind an attempt that failed: anything between nothing and the pause of that attempt
    /// ("full jitter": Marc Brooker, "Exponential Backoff And Jitter", 2015), so that messages that failed together do
    /// not come again together. It follows from the message and the attempt alone, so that a proof can replay it.
    pub(crate) fn pause(&self, message: &Message, attempt: u32) -> Duration {
        let doubled = self.pause_min.saturating_mul(1 << attempt.saturating_sub(1).min(30));
        let random = xxh3_64_with_seed(message.id.as_bytes(), attempt.into());
        let share = (random >> 32) as f64 / f64::from(u32::MAX);
        doubled.min(self.pause_max).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_are_spread_and_end() {
        let policy = Policy::park_key().with_pauses(Duration::from_secs(1), Duration::from_secs(8));
        let message = |number: u32| Message::with_id(number.to_string(), "s", "t");
        for (attempt, longest) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (4_000_000_000, 8)] {
            let longest = Duration::from_secs(longest);
            let pauses: Vec<_> = (0..1_000).map(|n| policy.pause(&message(n), attempt)).collect();
            assert!(pauses.iter().all(|pause| *pause <= longest), "attempt {attempt}");
            let mean = pauses.iter().sum::<Duration>() / 1_000;
            assert!(mean > longest.mul_f64(0.45) && mean < longest.mul_f64(0.55), "{attempt}: {mean:?}");
            assert_eq!(policy.pause(&message(7), attempt), pauses[7]);
        }
    }

    #[test]
    fn attempts_end_unless_it_blocks() {
        let policy = Policy::skip().with_attempts(3);
        assert!(policy.tries_again(2) && !policy.tries_again(3) && Policy::block().tries_again(1_000));
        assert_eq!(Policy::skip().with_attempts(0).attempts_max, 1);
    }
}
