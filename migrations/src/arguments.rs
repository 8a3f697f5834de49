//! The command line.

mod messages;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use messages::{ChannelVerb, Chosen, Dlq, Letters, OnChannel, Publish, ReasonWord};

/// Data that moves: migrate live databases without stopping the service that uses them.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Rows that differ are listed up to this number, unless another one is said.
pub(crate) const ROWS_LISTED: usize = 100;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Common {
    /// Configuration file (TOML); flags override it
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Name of the migration: one a source and target; several may run side by side [default: from the
    /// databases' names]
    #[arg(long, global = true)]
    pub(crate) name: Option<String>,
    /// Where the state is kept [default: in the target]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) state: Option<String>,
    /// How long to wait for a server that does not answer; a run under way waits a minute at least
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub(crate) timeout: Duration,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log errors alone
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// The two databases: what they and the name come to is a migration.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Ends {
    /// The database to read from
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
    /// The database to write to
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
}

/// Which tables are moved, and as what.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Moved {
    /// A table to move; repeat for more [default: all]
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<String>,
    /// A table to leave out; repeat for more
    #[arg(long = "exclude", value_name = "TABLE")]
    pub(crate) excluded: Vec<String>,
    /// What a table is called in the target: TABLE=NAME, for example public.orders=shop_orders
    #[arg(long = "map", value_name = "TABLE=NAME")]
    pub(crate) maps: Vec<String>,
    /// A file with a mapping of rows, as [[map]] in the configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) transform: Option<PathBuf>,
    /// How to carry a type that has no exact equal: TYPE=FORM, for example interval=string
    #[arg(long = "convert", value_name = "TYPE=FORM")]
    pub(crate) conversions: Vec<String>,
}

/// The broker.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Carrier {
    /// The broker that everything goes through to the target [default: none, within one process]
    #[arg(long, value_name = "URL")]
    pub(crate) via: Option<String>,
}

/// All that a run goes by. A verb takes of it what acts there; what one does not take it refuses, so that nobody believes
/// to have narrowed it down.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) ends: Ends,
    #[command(flatten)]
    pub(crate) moved: Moved,
    #[command(flatten)]
    pub(crate) carrier: Carrier,
    /// Allow rows in the target's tables; rows with equal keys are overwritten
    #[arg(long)]
    pub(crate) allow_non_empty: bool,
}

impl From<&Ends> for Flags {
    fn from(ends: &Ends) -> Self {
        Self { ends: ends.clone(), ..Self::default() }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// See a live migration in half a minute, with nothing to install
    Demo {
        /// How long the demo's order service writes
        #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(4..=600))]
        seconds: u64,
        /// Where the two databases are made [default: a folder that is removed at the end]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Show what would be moved, as what, and what stands in the way; changes nothing
    Plan {
        #[command(flatten)]
        flags: Flags,
        /// Read N documents of each collection, and print [[map]] tables that make columns of their
        /// fields instead: for the configuration, or for a file of --transform
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
        infer: Option<u64>,
    },
    /// Move tables to another database while their application goes on writing
    #[command(subcommand)]
    Migrate(Migrate),
    /// Look at messages that could not be handled, and have them tried again
    #[command(subcommand)]
    Dlq(Dlq),
    /// Look at channels on any broker, and feed them
    #[command(subcommand)]
    Channel(ChannelVerb),
    /// Check a configuration, or print its JSON Schema
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Look at every server of the configuration: what could be lost there, and how to avoid it
    Doctor {
        /// This broker alone
        #[arg(long, value_name = "URL", conflicts_with_all = ["from", "to", "via"])]
        broker: Option<String>,
        #[command(flatten)]
        ends: Ends,
        #[command(flatten)]
        carrier: Carrier,
    },
    /// Print the script that gives a user the least rights that work
    Grants {
        /// What the rights are for
        #[arg(long = "for", value_enum)]
        side: SideWord,
        /// The user [default: the URL's, or tidegate]
        #[arg(long)]
        user: Option<String>,
        /// The database
        url: String,
    },
    /// Print the page of an error: what happened, is data safe, what to do
    Explain {
        /// TG0040, 40 or slot-lost [default: the list of all]
        code: Option<String>,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Migrate {
    /// Crawl and capture until stopped; a second start goes on where the first ended
    Run {
        #[command(flatten)]
        flags: Flags,
        /// Answer /health, /ready and /metrics over HTTP here, for example 127.0.0.1:9100
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<std::net::SocketAddr>,
        /// End by itself: with exit status 0, or with 4 if both sides are compared and not equal
        #[arg(long, value_enum)]
        until: Option<UntilWord>,
        /// Which half of it to run, with --via: the one that reads, or the one that writes
        #[arg(long, value_enum, default_value_t = RoleWord::All)]
        role: RoleWord,
    },
    /// Show the state, rows, lag and what can be done next
    Status {
        #[command(flatten)]
        ends: Ends,
        /// Show it again each second
        #[arg(long)]
        watch: bool,
    },
    /// Pause the crawl, of one table or of all; changes go on
    Pause {
        #[command(flatten)]
        ends: Ends,
        /// A table to pause; repeat for more [default: all]
        #[arg(long = "table", value_name = "TABLE")]
        tables: Vec<String>,
    },
    /// Go on crawling
    Resume {
        #[command(flatten)]
        ends: Ends,
        /// A table to go on with; repeat for more [default: all]
        #[arg(long = "table", value_name = "TABLE")]
        tables: Vec<String>,
    },
    /// Leave a table out
    Skip {
        #[command(flatten)]
        ends: Ends,
        /// A table to leave out; repeat for more
        #[arg(long = "table", value_name = "TABLE", required = true)]
        tables: Vec<String>,
    },
    /// Crawl a table anew, from the beginning
    Recopy {
        #[command(flatten)]
        ends: Ends,
        /// A table to crawl anew; repeat for more
        #[arg(long = "table", value_name = "TABLE", required = true)]
        tables: Vec<String>,
    },
    /// Change a running migration: max_rate=5000 (rows a second), max_rate=20MB/s, workers=4
    Set {
        #[command(flatten)]
        ends: Ends,
        /// KEY=VALUE
        knob: String,
    },
    /// Compare both sides while writes go on; exit status 4 if they differ
    Verify {
        #[command(flatten)]
        ends: Ends,
        #[command(flatten)]
        moved: Moved,
        /// How many rows that differ are listed at most; counts are complete
        #[arg(long, default_value_t = ROWS_LISTED, value_name = "N")]
        limit: usize,
    },
    /// Remove what was made on the source, and the state; the target's rows stay
    Abort {
        #[command(flatten)]
        ends: Ends,
        #[command(flatten)]
        carrier: Carrier,
        /// Where the target is gone for good: look at the source alone, and remove what it keeps for the
        /// migration. Needs --from, and --name or what it comes from
        #[arg(long, conflicts_with = "via")]
        source_only: bool,
        /// Answer the question with yes
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleWord {
    /// Both, in one process
    All,
    /// Reads the source, decides the order, and keeps the status
    Source,
    /// Writes to the target what comes through the broker
    Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SideWord {
    /// Reading rows and their changes
    Source,
    /// Writing them
    Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UntilWord {
    /// Every table is crawled, and what the source had then is in the target
    CaughtUp,
    /// The same, and both sides were compared and are equal
    Verified,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Check the file of --config
    Check,
    /// Print the JSON Schema of the file
    Schema,
}

/// `30s`, `5m`, `500ms` or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 =
        digits.parse().map_err(|_| format!("{text:?} is not a duration; write 30s, 5m or 500ms"))?;
    let factor = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("{unit:?} is not a unit of time; use ms, s, m or h")),
    };
    Duration::try_from_secs_f64(number * factor).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("2 days").unwrap_err(), "\"2 days\" is not a duration; write 30s, 5m or 500ms");
        assert!(duration("-1s").is_err());
    }
}
