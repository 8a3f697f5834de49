use std::sync::Mutex;

use async_trait::async_trait;
use tidegate_core::port::{Attempt, Leftover, Settle, Settled};
use tidegate_core::{Message, Name, Scope, SystemClock, SystemIds};
use tidegate_memory::MemoryBroker;
use tokio::sync::{Notify, mpsc};

use super::*;
use crate::claim::Claimed;
use crate::policy::Policy;
use crate::priority::Turns;
use crate::replier::Replier;
use crate::service::{Handlers, Replies};
use crate::trace::Place;

/// Gives what it is told to, and notes what is settled.
struct Told {
    told: mpsc::UnboundedReceiver<(Signal, Vec<Delivery>)>,
    noted: Arc<Noted>,
}

#[derive(Default)]
struct Noted(Mutex<Vec<(u64, Settlement)>>);

#[async_trait]
impl Consumer for Told {
    async fn receive(&mut self, _: usize, wait: Duration, out: &mut Vec<Delivery>) -> Result<Signal> {
        let Ok(told) = tokio::time::timeout(wait, self.told.recv()).await else {
            return Ok(Signal::Messages);
        };
        let Some((signal, deliveries)) = told else { return Ok(Signal::Drained) };
        out.extend(deliveries);
        Ok(signal)
    }

    fn settler(&self) -> Arc<dyn Settle> {
        Arc::clone(&self.noted) as Arc<dyn Settle>
    }

    async fn close(self: Box<Self>, _: Duration) -> Result<Leftover> {
        Ok(Leftover::default())
    }
}

#[async_trait]
impl Settle for Noted {
    async fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Settled> {
        let mut noted = self.0.lock().unwrap();
        noted.extend(batch.iter().map(|(token, settlement)| (token.number, settlement.clone())));
        batch.iter().map(|_| Settled::Done).collect()
    }

    async fn extend(&self, tokens: &[Token], _: Duration) -> Vec<Settled> {
        tokens.iter().map(|_| Settled::Done).collect()
    }
}

fn delivery(id: &str, token: (u32, u64, u64), attempt: u32) -> Delivery {
    let (lane, epoch, number) = token;
    Delivery {
        message: Arc::new(Message::with_id(id, "s", "t").with_subject(lane.to_string())),
        token: Token { lane: Lane(lane), epoch, number },
        attempt: Attempt::Exact(attempt),
        position: None,
        stored_at: None,
    }
}

/// A worker that tries each message once, as one of several levels that run two handlers at once.
fn worker(
    consumer: Told,
    handlers: Handlers,
    stop: watch::Receiver<Option<Duration>>,
) -> (Worker<()>, Arc<Meter>) {
    let [channel, subscription] = ["c", "s"].map(|name| Name::new(name).unwrap());
    let place = Arc::new(Place { system: "memory".into(), channel, subscription });
    let meter = Arc::new(Meter::new(Arc::clone(&place), [].into_iter(), None));
    let clock = SystemClock::shared();
    let dispatch = Dispatch {
        place,
        handlers,
        state: (),
        policy: Policy::skip().with_attempts(1),
        claims: Claimed::Unknown,
        parked: None,
        dead: None,
        replies: Replies { ids: Arc::new(SystemIds), source: "s".into() },
        replier: Arc::new(Replier::new(Arc::new(MemoryBroker::default()), Arc::clone(&clock))),
        meter: Arc::clone(&meter),
        clock: Arc::clone(&clock),
    };
    let worker = Worker {
        part: Some(Part { turns: Arc::new(Turns::new(2)), level: 1 }),
        consumer: Box::new(consumer),
        dispatch: Arc::new(dispatch),
        clock,
        concurrency: 2,
        interval: Duration::ZERO,
        stop,
    };
    (worker, meter)
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not come about");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_to_be_tried_alone_goes_with_its_lane() {
    let lanes = || vec![Lane(1)];
    let revoked = Signal::LanesRevoked { lanes: lanes(), until: 0 };
    for (signal, is_given_back) in
        [(revoked, true), (Signal::LanesLost(lanes()), false), (Signal::Reconnected, false)]
    {
        let text = format!("{signal:?}");
        let (tell, told) = mpsc::unbounded_channel();
        let noted = Arc::new(Noted::default());
        let (seen, end): (Arc<Mutex<Vec<String>>>, Arc<Notify>) = Default::default();
        let handle = {
            let (seen, end) = (Arc::clone(&seen), Arc::clone(&end));
            move |message: Message| {
                seen.lock().unwrap().push(message.id.to_string());
                let end = Arc::clone(&end);
                async move {
                    if *message.id == *"slow" {
                        end.notified().await;
                    }
                }
            }
        };
        let (_stop, stopped) = watch::channel(None);
        let consumer = Told { told, noted: Arc::clone(&noted) };
        let (worker, meter) = worker(consumer, Handlers::new().handle(handle), stopped);
        let mut scope = Scope::new();
        scope.spawn(worker.run());
        let both = vec![delivery("slow", (0, 1, 1), 1), delivery("suspect", (1, 1, 2), 2)];
        tell.send((Signal::Messages, both)).unwrap();
        eventually("both are in hand", || meter.unsettled().0 == 2).await;
        tell.send((signal, Vec::new())).unwrap();
        // What comes later of the same subject goes on, though the slow one is not at its end.
        tell.send((Signal::Messages, vec![delivery("next", (1, 2, 3), 1)])).unwrap();
        eventually(&text, || seen.lock().unwrap().len() == 2).await;
        end.notify_one();
        eventually(&text, || meter.unsettled().0 == 0).await;
        drop(tell);
        scope.join().await.unwrap();
        assert_eq!(*seen.lock().unwrap(), ["slow", "next"], "{text}");
        let mut noted = noted.0.lock().unwrap().clone();
        noted.sort_by_key(|(number, _)| *number);
        let mut expected = vec![(1, Settlement::Ack), (2, Settlement::Release), (3, Settlement::Ack)];
        expected.retain(|(number, _)| is_given_back || *number != 2);
        assert_eq!(noted, expected, "{text}");
        assert_eq!(meter.counts.read().lost, u64::from(!is_given_back), "{text}");
    }
}
