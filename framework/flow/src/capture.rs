//! The task that drives the change feed.

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
                if let Some(upto) = upto {
                    feed.acknowledge(&upto).await?;
                }
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
    // The sequencer sends its last word on what may be forgotten after the stop, when all is durable.
    while acknowledge.changed().await.is_ok() {}
    let upto = acknowledge.borrow().clone();
    if let Some(upto) = upto {
        feed.acknowledge(&upto).await?;
    }
    feed.close().await
}
