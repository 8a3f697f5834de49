//! The task that owns the stream: it reads ahead a little and answers the server, also while nobody asks for changes.

use std::time::Duration;

use tidegate_core::{Error, Result};
use tokio::sync::mpsc;

use crate::error;
use crate::lsn::Lsn;
use crate::wire::{Progress, WalFrame, WalStream};

/// Well within the server's shortest usual patience.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How much is handed on at a time at most.
const BATCH_BYTES: usize = 1 << 20;
/// How many of these may wait to be taken.
pub(crate) const BATCHES_AHEAD: usize = 4;

/// What the feed wants of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The server may forget what lies before.
    Acknowledge(Lsn),
    /// The server shall say how far it is.
    Ask,
    /// The stream ends.
    Finish,
}

pub(crate) async fn pump(
    mut stream: WalStream,
    acknowledged: Lsn,
    mut orders: mpsc::UnboundedReceiver<Order>,
    out: mpsc::Sender<Vec<WalFrame>>,
) -> Result<()> {
    let all = |lsn| Progress { write: lsn, flush: lsn, apply: lsn };
    let mut acknowledged = acknowledged;
    let mut batch = Vec::new();
    let mut timer = tokio::time::interval(REPORT_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Acknowledge(lsn)) => {
                    acknowledged = acknowledged.max(lsn);
                    stream.report(all(acknowledged), false).await?;
                }
                Some(Order::Ask) => stream.report(all(acknowledged), true).await?,
                Some(Order::Finish) => return stream.finish().await,
                None => return Ok(()),
            },
            _ = timer.tick() => stream.report(all(acknowledged), false).await?,
            permit = out.reserve(), if !batch.is_empty() => match permit {
                Ok(permit) => permit.send(std::mem::take(&mut batch)),
                Err(_) => return Ok(()),
            },
            frame = stream.next(), if batch.is_empty() => {
                let mut next = Some(frame?.ok_or_else(ended)?);
                let mut bytes = 0;
                while let Some(frame) = next {
                    match &frame {
                        WalFrame::Data { payload, .. } => bytes += payload.len(),
                        WalFrame::Keepalive { reply_wanted: true, .. } => {
                            stream.report(all(acknowledged), false).await?;
                        }
                        WalFrame::Keepalive { .. } => {}
                    }
                    batch.push(frame);
                    next = if bytes < BATCH_BYTES { stream.received()? } else { None };
                }
            }
        }
    }
}

fn ended() -> Error {
    error::lost("stream")
}
