//! The task that drives the change feed.

use tidegate_core::error::Verdict;
use tidegate_core::port::{ChangeFeed, Progress};
use tidegate_core::{Changes, Position, Result};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What the feed gave.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) changes: Changes,
    pub(crate) progress: Progress,
}

/// Reads the feed until told to stop, and passes acknowledgements on to the source.
pub(crate) async fn capture(
    mut feed: Box<dyn ChangeFeed>,
    // Which tables of the flow the feed's tables are.
    tables: Vec<usize>,
    mut want: watch::Receiver<Option<Position>>,
    mut acknowledge: watch::Receiver<Option<Position>>,
    out: mpsc::Sender<Delivered>,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        let mut changes = Changes::new();
        let wanted = want.borrow_and_update().clone();
        let progress = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Ok(()) = acknowledge.changed() => {
                let upto = acknowledge.borrow_and_update().clone();
                tell(feed.as_mut(), upto).await?;
                continue;
            }
            // What is wanted changed: ask again. The call is cancel safe.
            Ok(()) = want.changed() => continue,
            progress = feed.next(wanted.as_ref(), &mut changes) => progress?,
        };
        changes.renumber(&tables);
        let delivered = Delivered { changes, progress };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            sent = out.send(delivered) => if sent.is_err() { break },
        }
    }
    // The last word on what may be forgotten is the sequencer's, until it is gone.
    while acknowledge.changed().await.is_ok() {}
    let upto = acknowledge.borrow().clone();
    tell(feed.as_mut(), upto).await?;
    feed.close().await
}

/// Tells the source what it may forget. One that is busy is told later: nothing waits for that.
async fn tell(feed: &mut dyn ChangeFeed, upto: Option<Position>) -> Result<()> {
    let Some(upto) = upto else { return Ok(()) };
    match feed.acknowledge(&upto).await {
        Err(error) if error.verdict() == Verdict::Retry => {
            tracing::debug!(%error, "the source is told later what it may forget");
            Ok(())
        }
        told => told,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use tidegate_core::Error;
    use tidegate_core::error::code;

    use super::*;

    /// Has nothing, and cannot be told anything.
    struct Busy;

    #[async_trait]
    impl ChangeFeed for Busy {
        async fn next(&mut self, _: Option<&Position>, _: &mut Changes) -> Result<Progress> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(Progress { position: Position::from_u64(1), behind: 0 })
        }

        async fn acknowledge(&mut self, _: &Position) -> Result<()> {
            Err(Error::new(code::STORE_FAILED, "the file is locked").verdict_is(Verdict::Retry))
        }

        async fn close(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    /// Found by reading: a long transaction of the application on a SQLite source ended the run.
    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_busy_is_told_later() {
        let (_want, wanted) = watch::channel(None);
        let (acknowledge, acknowledged) = watch::channel(None);
        let (out, mut delivered) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let asks = async {
            for position in 1..4 {
                acknowledge.send_replace(Some(Position::from_u64(position)));
                assert!(delivered.recv().await.is_some());
            }
            stop.cancel();
            drop((acknowledge, delivered));
        };
        let captured = capture(Box::new(Busy), Vec::new(), wanted, acknowledged, out, stop.clone());
        let (captured, ()) = tokio::join!(captured, asks);
        captured.unwrap();
    }
}
