//! What is said of the messages of a broker.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// The channel whose dead letters are meant.
#[derive(Args, Clone, Debug)]
pub(crate) struct Letters {
    /// The broker
    #[arg(long, value_name = "URL")]
    pub(crate) broker: String,
    /// The channel that the messages came from
    #[arg(long)]
    pub(crate) channel: String,
    /// How many dead letters are looked at, from the oldest on: as many as may be in hand, at most
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
}

/// Which of them: what is said of all of this.
#[derive(Args, Clone, Debug)]
pub(crate) struct Chosen {
    /// Those of this subscription
    #[arg(long)]
    pub(crate) subscription: Option<String>,
    /// Those of this subject
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// Those of this kind
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Those that are dead for this reason
    #[arg(long, value_enum)]
    pub(crate) reason: Option<ReasonWord>,
    /// The one of this id; repeat for more
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReasonWord {
    /// It was tried as often as its policy says
    Exhausted,
    /// Its handler said that it will fail for ever
    Refused,
    /// It is no message, or not what its kind says
    Undecodable,
    /// Nothing handles its kind
    Unhandled,
    /// Its body is elsewhere, and was not found there
    Unclaimed,
    /// It waits behind another one of its subject
    Behind,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// List them: what each is, and why it is there
    List {
        #[command(flatten)]
        letters: Letters,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Show one of them whole: attributes, history, headers, body
    Show {
        #[command(flatten)]
        letters: Letters,
        /// Its id, or as much of its beginning as no other one has
        id: String,
    },
    /// Have them tried again by the subscription that could not handle them, in their order
    Replay {
        #[command(flatten)]
        letters: Letters,
        #[command(flatten)]
        chosen: Chosen,
        /// All of them
        #[arg(long, conflicts_with_all = ["subscription", "subject", "kind", "reason", "ids"])]
        all: bool,
    },
    /// Have one of them tried again with another body; the one that it has is gone then
    Edit {
        #[command(flatten)]
        letters: Letters,
        /// Its id, or as much of its beginning as no other one has
        id: String,
        /// The file with the new body
        #[arg(long, value_name = "FILE")]
        body: PathBuf,
        /// Answer the question with yes
        #[arg(long)]
        yes: bool,
    },
    /// Take them away for ever; what waits behind them may be replayed then
    Purge {
        #[command(flatten)]
        letters: Letters,
        #[command(flatten)]
        chosen: Chosen,
        /// All of them
        #[arg(long, conflicts_with_all = ["subscription", "subject", "kind", "reason", "ids"])]
        all: bool,
        /// Answer the question with yes
        #[arg(long)]
        yes: bool,
    },
}

/// Which channel.
#[derive(Debug, Args)]
pub(crate) struct OnChannel {
    /// The broker
    #[arg(long, value_name = "URL")]
    pub(crate) broker: String,
    /// The channel
    #[arg(long)]
    pub(crate) channel: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChannelVerb {
    /// List channels and their subscriptions
    List {
        /// The broker
        #[arg(long, value_name = "URL")]
        broker: String,
    },
    /// Show the messages that are kept, without taking them; --json gives lines that `publish --lines` takes
    Tail {
        #[command(flatten)]
        on: OnChannel,
        /// Where to begin: earliest, latest, or a position that was shown [default: earliest; latest with --follow]
        #[arg(long, value_name = "START")]
        start: Option<String>,
        /// Go on with what is published, until stopped
        #[arg(long, short)]
        follow: bool,
        /// Stop after so many
        #[arg(long, short = 'n', value_name = "N")]
        limit: Option<u64>,
    },
    /// Publish one message, or many from lines of JSON
    Publish(Box<Publish>),
    /// Make channels and subscriptions as a file says; nothing that is there is changed
    Apply {
        /// The broker
        #[arg(long, value_name = "URL")]
        broker: String,
        /// The file, in TOML: [[channel]] with name, lanes, keep, messages_max, bytes_max, subscriptions
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Only say what differs, with exit status 4 if something does
        #[arg(long)]
        verify: bool,
    },
    /// Remove a subscription with everything that is kept for it alone
    Unregister {
        #[command(flatten)]
        on: OnChannel,
        /// The subscription
        #[arg(long)]
        subscription: String,
        /// Answer the question with yes
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    #[command(flatten)]
    pub(crate) on: OnChannel,
    /// Messages as lines of JSON, as `channel tail --json` writes them; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "subject", "source", "id", "headers", "body", "content_type"])]
    pub(crate) lines: Option<PathBuf>,
    /// What kind of message it is
    #[arg(long, required_unless_present = "lines")]
    pub(crate) kind: Option<String>,
    /// What it is about: its ordering key
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// Who made it
    #[arg(long, default_value = "/tidegate/channel-publish", value_name = "URI")]
    pub(crate) source: String,
    /// Its id, so that publishing it again has one effect where the broker knows ids [default: a new one]
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// A header; repeat for more
    #[arg(long = "header", value_name = "NAME=VALUE")]
    pub(crate) headers: Vec<String>,
    /// The file with the body; - is the standard input [default: no body]
    #[arg(long, value_name = "FILE")]
    pub(crate) body: Option<PathBuf>,
    /// The media type of the body
    #[arg(long, default_value = "application/json", value_name = "TYPE")]
    pub(crate) content_type: String,
}
