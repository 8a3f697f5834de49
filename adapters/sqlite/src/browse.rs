//! Looks at messages.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_broker::unsettled::Place;
use tidegate_core::port::{Browse, Seen};
use tidegate_core::{Lane, Position, Result};

use crate::broker::Link;
use crate::broker::read;
use crate::broker::topology::Found;

/// How often to look for what other processes have published.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct SqliteBrowse {
    link: Arc<Link>,
    reader: SqliteConnection,
    channel: i64,
    /// Of each lane, the place behind which it goes on.
    after: Vec<Place>,
}

impl SqliteBrowse {
    pub(crate) fn new(link: Arc<Link>, reader: SqliteConnection, found: &Found, after: Place) -> Self {
        let after = vec![after; found.channel.lanes as usize];
        Self { link, reader, channel: found.id, after }
    }

    async fn take(&mut self, max: usize, out: &mut Vec<Seen>) -> Result<()> {
        let full = out.len() + max;
        for (lane, after) in (0..).map(Lane).zip(&mut self.after) {
            let kept = read::next(&mut self.reader, self.channel, lane, *after, full - out.len()).await?;
            for kept in kept {
                *after = kept.place;
                let position = Some(Position::from_u64(kept.place));
                out.push(Seen { message: kept.message, lane, position, stored_at: Some(kept.at) });
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Browse for SqliteBrowse {
    async fn next(&mut self, max: usize, wait: Duration, out: &mut Vec<Seen>) -> Result<()> {
        let clock = &*Arc::clone(&self.link.clock);
        let (before, until) = (out.len(), clock.elapsed() + wait);
        loop {
            let changed = Arc::clone(&self.link.changed);
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            self.link.check_open()?;
            self.link.check_file()?;
            self.take(max, out).await?;
            let left = until.saturating_sub(clock.elapsed());
            if out.len() > before || left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                () = changed => {}
                () = clock.sleep(left.min(LOOK)) => {}
            }
        }
    }
}
