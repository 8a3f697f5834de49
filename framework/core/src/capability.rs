//! What a broker can do, as data: the plan, the documentation and the conformance suite read the same table.

use std::fmt;

use crate::error::{Error, code};

/// How something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By the broker itself.
    Native,
    /// By the adapter, and how.
    Emulated(&'static str),
    /// Not at all, and why. Asking for it is refused with `capability-missing`.
    No(&'static str),
}

impl How {
    /// Whether it can be asked for.
    pub fn is_there(self) -> bool {
        !matches!(self, How::No(_))
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Native => f.write_str("native"),
            How::Emulated(how) => write!(f, "emulated: {how}"),
            How::No(why) => write!(f, "no: {why}"),
        }
    }
}

/// A way in which a message that was confirmed can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossCase {
    /// What has to happen.
    pub when: LossEvent,
    /// The same for people, in one sentence.
    pub text: &'static str,
    /// What keeps it from happening.
    pub avoid: &'static str,
}

/// What has to happen for a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossEvent {
    /// The broker's process is killed.
    BrokerKilled,
    /// The machine loses its power.
    PowerLost,
    /// Another server takes over.
    FailedOver,
}

/// Everything that a broker declares. A field that is added has to be filled in by every adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What "stored" means here.
    pub confirm: &'static str,
    /// Messages with one subject come in order.
    pub order_by_key: How,
    /// Several consumers share the messages of one subscription.
    pub competing_consumers: How,
    /// A subscription keeps its place while nobody is there.
    pub durable_subscriptions: How,
    /// A subscription can be removed, with everything that is kept for it.
    pub unregister: How,
    /// A new subscription may begin with messages that others have settled.
    pub replay: How,
    /// The same message published twice is stored once.
    pub dedupe: How,
    /// A message can be asked for again after some time.
    pub retry_later: How,
    /// A message can be put where those go that cannot be handled.
    pub dead_letter: How,
    /// Deliveries say how often the message was tried.
    pub delivery_count: How,
    /// A delivery can be kept in hand for longer.
    pub lock_extend: How,
    /// All channels and subscriptions can be listed.
    pub listing: How,
    /// Messages can be looked at without taking part.
    pub browsing: How,
    /// Several processes may use one broker.
    pub processes: How,
    /// How large a message may be, with everything beside its body.
    pub message_bytes_max: usize,
    /// How many consumers of a subscription may read one lane at once.
    pub consumers_per_lane_max: u32,
    /// How a message that was confirmed can be lost.
    pub loss: &'static [LossCase],
}

impl Capabilities {
    /// The rows of the table, by name.
    pub fn rows(&self) -> [(&'static str, How); 13] {
        [
            ("order_by_key", self.order_by_key),
            ("competing_consumers", self.competing_consumers),
            ("durable_subscriptions", self.durable_subscriptions),
            ("unregister", self.unregister),
            ("replay", self.replay),
            ("dedupe", self.dedupe),
            ("retry_later", self.retry_later),
            ("dead_letter", self.dead_letter),
            ("delivery_count", self.delivery_count),
            ("lock_extend", self.lock_extend),
            ("listing", self.listing),
            ("browsing", self.browsing),
            ("processes", self.processes),
        ]
    }

    /// The row of this name.
    pub fn row(&self, name: &str) -> Option<How> {
        self.rows().into_iter().find(|(known, _)| *known == name).map(|(_, how)| how)
    }

    /// Whether what was confirmed may be lost when this happens.
    pub fn loses_when(&self, event: LossEvent) -> bool {
        self.loss.iter().any(|case| case.when == event)
    }
}

/// The refusal of something that a broker declares it cannot do.
pub fn missing(broker: &str, capability: &'static str, why: &'static str) -> Error {
    Error::new(code::CAPABILITY_MISSING, format!("{broker} has no {capability}: {why}"))
        .with("capability", capability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_name() {
        let capabilities = Capabilities {
            confirm: "nothing",
            order_by_key: How::Native,
            competing_consumers: How::Native,
            durable_subscriptions: How::Native,
            unregister: How::Native,
            replay: How::No("messages go when they are settled"),
            dedupe: How::Emulated("by an inbox"),
            retry_later: How::Native,
            dead_letter: How::Native,
            delivery_count: How::Native,
            lock_extend: How::Native,
            listing: How::Native,
            browsing: How::Native,
            processes: How::Native,
            message_bytes_max: 1,
            consumers_per_lane_max: 1,
            loss: &[LossCase { when: LossEvent::PowerLost, text: "…", avoid: "…" }],
        };
        assert_eq!(capabilities.row("dedupe").unwrap().to_string(), "emulated: by an inbox");
        assert!(!capabilities.row("replay").unwrap().is_there());
        assert_eq!(capabilities.row("no such"), None);
        assert!(
            capabilities.loses_when(LossEvent::PowerLost)
                && !capabilities.loses_when(LossEvent::BrokerKilled)
        );
        let error = missing("memory", "replay", "messages go when they are settled");
        assert_eq!(
            error.to_string(),
            "TG0030 capability-missing: memory has no replay: messages go when they are settled"
        );
    }
}
