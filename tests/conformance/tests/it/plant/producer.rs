//! Its producers.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Producer, Sent};
use tidegate_core::{Error, Message, Position, Result};
use tokio::time::sleep;

use super::network::Way;
use super::{Bug, SharedState, lock, planted};

pub(super) struct PlantedProducer {
    pub(super) bug: Bug,
    pub(super) inner: Arc<tokio::sync::Mutex<Box<dyn Producer>>>,
    pub(super) shared: Arc<SharedState>,
    pub(super) seen: HashSet<Arc<str>>,
    pub(super) way: Way,
}

#[async_trait]
impl Producer for PlantedProducer {
    async fn publish(&mut self, batch: &[Message]) -> Vec<Sent> {
        if let Err(error) = self.way.pass().await {
            let stored = || Sent::Stored { position: Some(Position::from_u64(0)), duplicate: false };
            let answer = |_: &Message| match (self.bug, error.verdict()) {
                (Bug::TimeoutSaysStored, Verdict::Unknown) => stored(),
                (_, Verdict::Unknown) => Sent::Unknown(error.again()),
                _ => Sent::Refused(error.again()),
            };
            return batch.iter().map(answer).collect();
        }
        match self.bug {
            Bug::LosesConfirmed | Bug::LosesReplies | Bug::LosesWhatWasCarried => {
                // Of two hundred messages one is confirmed and not stored; of replies, or of what came over a bridge, all.
                let is_lost = |message: &&Message| match self.bug {
                    Bug::LosesReplies => message.headers.get(tidegate_runtime::CALL).is_some(),
                    Bug::LosesWhatWasCarried => message.headers.get(tidegate_runtime::VIA).is_some(),
                    _ => self.shared.number.fetch_add(1, Ordering::Relaxed) % 200 == 199,
                };
                let lost: HashSet<_> = batch.iter().filter(is_lost).map(|m| Arc::clone(&m.id)).collect();
                let rest: Vec<_> = batch.iter().filter(|m| !lost.contains(&m.id)).cloned().collect();
                let mut sent = self.inner.lock().await.publish(&rest).await.into_iter();
                let stored = || Sent::Stored { position: Some(Position::from_u64(0)), duplicate: false };
                let answer = |m: &Message| if lost.contains(&m.id) { stored() } else { sent.next().unwrap() };
                return batch.iter().map(answer).collect();
            }
            Bug::StoresAfterClose => {
                let (inner, batch) = (Arc::clone(&self.inner), batch.to_vec());
                let (tell, told) = tokio::sync::oneshot::channel();
                lock(&self.shared.late).spawn(async move {
                    sleep(Duration::from_millis(400)).await;
                    let _ = tell.send(inner.lock().await.publish(&batch).await);
                    Ok(())
                });
                return told.await.unwrap();
            }
            _ => {}
        }
        let is_again = batch.iter().any(|message| self.seen.contains(&message.id));
        self.seen.extend(batch.iter().map(|message| Arc::clone(&message.id)));
        let mut inner = self.inner.lock().await;
        if self.bug == Bug::RetriesBackwards && is_again {
            let backwards: Vec<_> = batch.iter().rev().cloned().collect();
            let mut sent = inner.publish(&backwards).await;
            sent.reverse();
            return sent;
        }
        let mut batch = std::borrow::Cow::Borrowed(batch);
        if self.bug == Bug::CopiesAreDuplicates {
            let forget = |message: &mut Message| message.headers.remove(tidegate_core::message::COPY);
            batch.to_mut().iter_mut().for_each(forget);
        }
        if self.bug == Bug::ForgetsTraces {
            batch.to_mut().iter_mut().for_each(|message| message.traceparent = None);
        }
        if self.bug == Bug::CutsDeadLetters {
            let is_dead = |m: &&mut Message| m.headers.get(tidegate_runtime::dead_letter::REASON).is_some();
            batch.to_mut().iter_mut().filter(is_dead).for_each(|m| m.data.truncate(3));
        }
        let mut sent = inner.publish(&batch).await;
        let refused = sent.iter().position(|sent| matches!(sent, Sent::Refused(_)));
        match (self.bug, refused) {
            (Bug::AnswersBackwards, _) => sent.reverse(),
            (Bug::BlamesTheNeighbour, Some(_)) => sent.rotate_right(1),
            (Bug::TooLargeTakesNeighbours, Some(at)) => {
                sent.truncate(at);
                let refused = || Sent::Refused(planted(code::BODY_TOO_LARGE));
                sent.resize_with(batch.len(), refused);
            }
            (Bug::StoresForNobody | Bug::StoresInNothing, _) => {
                let refusal = match self.bug {
                    Bug::StoresForNobody => code::SUBSCRIPTION_MISSING,
                    _ => code::CHANNEL_MISSING,
                };
                for sent in &mut sent {
                    if sent.error().map(Error::code) == Some(refusal) {
                        *sent = Sent::Stored { position: Some(Position::from_u64(0)), duplicate: false };
                    }
                }
            }
            (Bug::UnknownSaysRefused, _) => {
                for sent in &mut sent {
                    if let Sent::Unknown(error) = sent {
                        let error = Error::new(error.code(), error.message().to_owned());
                        *sent = Sent::Refused(error);
                    }
                }
            }
            _ => {}
        }
        sent
    }

    async fn close(self: Box<Self>, _: Duration) -> Result<()> {
        Ok(())
    }
}
