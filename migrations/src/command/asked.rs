//! A broker that a verb asks.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Name, Result};
use tokio::time::sleep;

use crate::arguments::Common;
use crate::registry::Registry;
use crate::render::tell;

/// Whoever waits for longer is told what for.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// What waits for as long within the broker ends before, and says more.
const MARGIN: Duration = Duration::from_secs(1);

/// Whether the file of an embedded broker has to be there, or is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    IsThere,
    IsMade,
}

/// Who opens the file of an embedded broker makes it: a misspelt name is to make none.
fn require(endpoint: &Endpoint) -> Result<()> {
    let path = endpoint.path();
    let path = Path::new(path.strip_prefix("//").unwrap_or(path));
    if endpoint.scheme() != "sqlite" || path.exists() {
        return Ok(());
    }
    let text = format!("there is no database file at {}", path.display());
    Err(Error::new(code::URL_INVALID, text).hint(
        "look at its spelling; tidegate channel apply, or the first service that makes its channels, makes the file",
    ))
}

/// A broker, and how long the command line has its answers waited for.
pub(super) struct Asked {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) patience: Duration,
    is_quiet: bool,
}

impl Asked {
    /// The broker of a URL. Nothing is connected yet.
    ///
    /// # Errors
    /// `config-invalid` where the command line says what no verb of messages goes by, so that nobody believes that it was heard.
    pub(super) fn open(common: &Common, registry: &Registry, url: &str, file: File) -> Result<Self> {
        let unheard = [
            ("--config", common.config.is_some()),
            ("--name", common.name.is_some()),
            ("--state", common.state.is_some()),
        ];
        if let Some((flag, _)) = unheard.iter().find(|(_, is_given)| *is_given) {
            let text = format!("{flag} is of migrations, and nothing here goes by it");
            return Err(
                Error::new(code::CONFIG_INVALID, text).hint("leave it out: --broker says all that is needed")
            );
        }
        let endpoint = Endpoint::parse(url)?;
        if file == File::IsThere {
            require(&endpoint)?;
        }
        let broker = registry.open_broker(&endpoint)?;
        Ok(Self { broker, patience: common.timeout, is_quiet: common.quiet })
    }

    /// The same, where what other programs put there is wanted.
    ///
    /// # Errors
    /// `capability-missing` if the broker is within one process: it is another one's.
    pub(super) fn open_shared(common: &Common, registry: &Registry, url: &str, file: File) -> Result<Self> {
        let asked = Self::open(common, registry, url, file)?;
        if asked.broker.capabilities().processes.is_there() {
            return Ok(asked);
        }
        let text = format!("{} is within one program, and this is another one", asked.broker.location());
        Err(Error::new(code::CAPABILITY_MISSING, text)
            .hint("name a broker that several processes reach: sqlite:FILE, or a server"))
    }

    /// Waits for an answer for as long as `--timeout` says.
    ///
    /// # Errors
    /// Those of the call; `timed-out` if there was no answer.
    pub(super) async fn within<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let limited = async {
            tokio::select! {
                answer = call => answer,
                () = sleep(self.patience + MARGIN) => {
                    let text = format!("{what} was not answered within {:?}", self.patience);
                    Err(Error::new(code::TIMED_OUT, text).hint("look at the server, or raise --timeout"))
                }
            }
        };
        self.told(what, limited).await
    }

    /// Waits for an answer for as long as it takes, and says what for if that is long.
    pub(super) async fn told<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        let mut call = pin!(call);
        let soon = tokio::select! {
            answer = &mut call => Some(answer),
            () = sleep(TELL_AFTER) => None,
        };
        let answer = match soon {
            Some(answer) => answer,
            None => {
                self.tell(format_args!("{}: {what} takes a while", self.broker.location()));
                call.await
            }
        };
        answer.map_err(|error| match error.context().iter().any(|(name, _)| name == "broker") {
            true => error,
            false => error.with("broker", self.broker.location()),
        })
    }

    /// Says something beside the answer, to who wants to know.
    pub(super) fn tell(&self, line: std::fmt::Arguments<'_>) {
        if !self.is_quiet {
            tell(line);
        }
    }

    /// A channel that is there.
    ///
    /// # Errors
    /// `channel-missing`.
    pub(super) async fn channel(&self, name: &str) -> Result<Channel> {
        let name = Name::new(name)?;
        let found = self.within("looking for the channel", self.broker.channel(&name)).await?;
        found.ok_or_else(|| {
            let hint = if self.broker.capabilities().listing.is_there() {
                "tidegate channel list shows those that are there, tidegate channel apply makes one"
            } else {
                "look at its spelling: this broker lists no channels; tidegate channel apply makes one"
            };
            Error::new(code::CHANNEL_MISSING, format!("there is no channel {name}"))
                .with("broker", self.broker.location())
                .hint(hint)
        })
    }
}
