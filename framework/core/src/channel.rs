//! Channels, and who subscribes to them.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result, code};
use crate::position::Position;

/// Lanes of a channel that names none.
pub const LANES: u32 = 8;
/// How many lanes a channel may have.
pub const LANES_MAX: u32 = 1_024;
/// How many deliveries one consumer may have in hand, if the subscription does not say.
pub const WINDOW: usize = 1_000;

/// The name of a channel or a subscription: what every broker takes as it is, with no character that means something
/// to one of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks a name: 1 to 100 of `a–z 0–9 _ . -`, starting with a letter and ending with a letter or digit.
    ///
    /// # Errors
    /// `config-invalid` otherwise; wildcards are among what is refused.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.-".contains(&c);
        let bytes = name.as_bytes();
        let ends = bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric);
        if ends && bytes.len() <= 100 && bytes.iter().copied().all(plain) && !name.contains("..") {
            return Ok(Self(name));
        }
        Err(Error::new(code::CONFIG_INVALID, format!("the name {name:?} cannot be used on every broker"))
            .hint("a name is 1 to 100 of a-z, 0-9, _, . and -, starting with a letter: orders.placed"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How long messages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Keep {
    /// Until every subscription has settled them. Without any subscription nothing can be published.
    UntilSettled,
    /// Until every subscription has settled them, and at least this long: a later subscription may have them too.
    AtLeast(Duration),
}

/// As a setting has it, in the largest unit that is exact: `24h`, `90s`.
impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Keep::AtLeast(time) = self else { return f.write_str("until settled") };
        let (millis, seconds) = (time.as_millis(), time.as_secs());
        match () {
            () if millis % 1_000 != 0 => write!(f, "{millis}ms"),
            () if seconds > 0 && seconds.is_multiple_of(3_600) => write!(f, "{}h", seconds / 3_600),
            () if seconds > 0 && seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            () => write!(f, "{seconds}s"),
        }
    }
}

/// Where messages go, cut into lanes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Channel {
    /// Its name.
    pub name: Name,
    /// How many lanes; order holds in each. It cannot be changed later: keys would change their lanes.
    pub lanes: u32,
    /// How long messages are kept.
    pub keep: Keep,
    /// How many messages are kept at most; beyond it publishing waits, then is refused.
    pub messages_max: u64,
    /// How many bytes of messages are kept at most; beyond it publishing waits, then is refused.
    pub bytes_max: u64,
}

impl Channel {
    /// A channel with eight lanes that keeps messages until they are settled.
    ///
    /// # Errors
    /// `config-invalid` if the name cannot be used.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        Ok(Self {
            name: Name::new(name)?,
            lanes: LANES,
            keep: Keep::UntilSettled,
            messages_max: 1_000_000,
            bytes_max: 1 << 30,
        })
    }

    /// Another number of lanes.
    #[must_use]
    pub fn with_lanes(mut self, lanes: u32) -> Self {
        self.lanes = lanes;
        self
    }

    /// Keeps messages for another time.
    #[must_use]
    pub fn with_keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// Keeps at most so many messages and bytes of them.
    #[must_use]
    pub fn with_limits(mut self, messages_max: u64, bytes_max: u64) -> Self {
        self.messages_max = messages_max;
        self.bytes_max = bytes_max;
        self
    }

    /// Whether it can exist.
    ///
    /// # Errors
    /// `config-invalid`, naming the setting.
    pub fn check(&self) -> Result<()> {
        if !(1..=LANES_MAX).contains(&self.lanes) {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("channel {}: {} lanes, and 1 to {LANES_MAX} are possible", self.name, self.lanes),
            ));
        }
        if self.messages_max == 0 || self.bytes_max == 0 {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("channel {} could not keep a single message", self.name),
            ));
        }
        Ok(())
    }
}

/// Where a subscription begins, when it is registered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// With the first message that is still kept.
    #[default]
    Earliest,
    /// With the first message that is published after it was registered.
    Latest,
    /// With the first message after this position, as [`Sent::Stored`](crate::port::Sent::Stored) gave it.
    After(Position),
}

/// Somebody who gets every message of a channel; its members share them.
///
/// It is durable: registered when it is first subscribed to or applied, it keeps its place while no member is there,
/// until it is unregistered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Subscription {
    /// The channel.
    pub channel: Name,
    /// Its name, unique in the channel. Every consumer that names it is a member.
    pub name: Name,
    /// Where it begins; without meaning once it is registered.
    pub start: Start,
    /// How many deliveries one consumer may have in hand.
    pub window: usize,
}

impl Subscription {
    /// A subscription that begins with the first message still kept.
    ///
    /// # Errors
    /// `config-invalid` if the name cannot be used.
    pub fn new(channel: &Channel, name: impl Into<String>) -> Result<Self> {
        Ok(Self {
            channel: channel.name.clone(),
            name: Name::new(name)?,
            start: Start::Earliest,
            window: WINDOW,
        })
    }

    /// Begins elsewhere.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Has at most so many deliveries in hand; at least one.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window.max(1);
        self
    }
}

/// What is to be there.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Topology {
    /// Channels.
    pub channels: Vec<Channel>,
    /// Subscriptions, so that messages are kept for them before their first consumer comes.
    pub subscriptions: Vec<Subscription>,
}

impl Topology {
    /// Of one channel alone.
    pub fn of(channel: &Channel) -> Self {
        Self { channels: vec![channel.clone()], subscriptions: Vec::new() }
    }

    /// One subscription more.
    #[must_use]
    pub fn and(mut self, subscription: &Subscription) -> Self {
        self.subscriptions.push(subscription.clone());
        self
    }
}

/// Whether a topology is compared or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Say what differs and change nothing.
    Verify,
    /// Make what is missing. What is there with other settings is an error and stays as it is.
    Create,
}

/// What a topology has and a broker has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// There is no such channel.
    ChannelMissing(Name),
    /// The channel is there with another setting: its name, what is asked for and what is there.
    ChannelDiffers {
        /// The channel.
        channel: Name,
        /// Which setting.
        setting: &'static str,
        /// What the topology says.
        wanted: String,
        /// What the broker has.
        found: String,
    },
    /// There is no such subscription of a channel.
    SubscriptionMissing {
        /// The channel.
        channel: Name,
        /// The subscription.
        name: Name,
    },
}

impl Difference {
    /// What of `found` is not as `wanted` says, for a channel that is there.
    pub fn between(wanted: &Channel, found: &Channel) -> Vec<Difference> {
        let differs =
            |setting, wanted: String, found: String| (wanted != found).then_some((setting, wanted, found));
        [
            differs("lanes", wanted.lanes.to_string(), found.lanes.to_string()),
            differs("keep", wanted.keep.to_string(), found.keep.to_string()),
            differs("messages_max", wanted.messages_max.to_string(), found.messages_max.to_string()),
            differs("bytes_max", wanted.bytes_max.to_string(), found.bytes_max.to_string()),
        ]
        .into_iter()
        .flatten()
        .map(|(setting, wanted_text, found)| Difference::ChannelDiffers {
            channel: wanted.name.clone(),
            setting,
            wanted: wanted_text,
            found,
        })
        .collect()
    }

    /// As an error: `channel-missing` or `channel-differs`.
    pub fn error(&self) -> Error {
        match self {
            Difference::ChannelMissing(_) => Error::new(code::CHANNEL_MISSING, self.to_string())
                .hint("apply the topology with the mode that creates"),
            Difference::ChannelDiffers { .. } | Difference::SubscriptionMissing { .. } => {
                Error::new(code::CHANNEL_DIFFERS, self.to_string())
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::ChannelMissing(name) => write!(f, "there is no channel {name}"),
            Difference::ChannelDiffers { channel, setting, wanted, found } => {
                write!(f, "channel {channel} has {setting} {found}, and {wanted} is asked for")
            }
            Difference::SubscriptionMissing { channel, name } => {
                write!(f, "channel {channel} has no subscription {name}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_nothing_to_any_broker() {
        for name in ["orders", "orders.placed", "a-b_c9"] {
            assert!(Name::new(name).is_ok(), "{name}");
        }
        let long = "a".repeat(101);
        for name in
            ["", "Orders", "orders.*", "orders.>", "#", "a/b", "a b", "a..b", "a.", ".a", "9a", "a%", &long]
        {
            assert!(Name::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_time_is_shown_as_a_setting_has_it() {
        let shown = |millis| Keep::AtLeast(Duration::from_millis(millis)).to_string();
        assert_eq!([0, 1_500, 90_000, 120_000, 86_400_000].map(shown), ["0s", "1500ms", "90s", "2m", "24h"]);
    }

    #[test]
    fn a_channel_needs_lanes_and_room() {
        let channel = Channel::new("orders").unwrap();
        assert!(channel.check().is_ok());
        assert!(channel.clone().with_lanes(0).check().is_err());
        assert!(channel.clone().with_lanes(LANES_MAX + 1).check().is_err());
        assert!(channel.with_limits(0, 1).check().is_err());
    }

    #[test]
    fn each_setting_that_differs_is_named() {
        let wanted = Channel::new("orders").unwrap();
        let found = wanted.clone().with_lanes(3).with_keep(Keep::AtLeast(Duration::from_secs(9)));
        let texts: Vec<_> = Difference::between(&wanted, &found).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "channel orders has lanes 3, and 8 is asked for",
                "channel orders has keep 9s, and until settled is asked for"
            ]
        );
        assert!(Difference::between(&wanted, &wanted).is_empty());
    }
}
