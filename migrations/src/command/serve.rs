//! `tidegate migrate run --role target`: the half that writes.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::{Error, How, Result, Scope, SystemClock};
use tidegate_flow::via::{self, Via};
use tidegate_flow::{Gauge, Options};
use tokio_util::sync::CancellationToken;

use super::run::{patiently, stop_on_signal};
use crate::arguments::UntilWord;
use crate::listen::{Listener, bind};
use crate::render::tell;
use crate::settings::Settings;

/// How often the listener is told that the program lives.
const ALIVE: Duration = Duration::from_millis(500);

pub(super) async fn serve(
    settings: &Settings,
    until: Option<UntilWord>,
    listen: Option<SocketAddr>,
) -> Result<ExitCode> {
    if until.is_some() {
        return Err(Error::new(
            code::CONFIG_INVALID,
            "--role target does not know when the source is at its end",
        )
        .hint("give --until to --role source; stop this half with SIGTERM afterwards"));
    }
    let broker_and_ends = require_processes(settings)?;
    let port = bind(listen).await?;
    patiently(settings, || broker_and_ends.broker.probe()).await?;
    patiently(settings, || settings.target.catalog()).await?;
    let stop = CancellationToken::new();
    let mut scope = Scope::new();
    scope.spawn(stop_on_signal(stop.clone()));
    let listener = Listener::new(Arc::new(Gauge::new(&[], &Options::default())), SystemClock::shared());
    if let Some(port) = port {
        scope.spawn(listener.clone().serve(port));
    }
    tell(format_args!(
        "writing to {} what comes through {}",
        settings.target.location(),
        broker_and_ends.broker.location()
    ));
    let serving = via::serve(&settings.name, &settings.target, broker_and_ends, &stop);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            biased;
            ended = &mut serving => {
                ended?;
                return Err(Error::new(code::STOPPED, "stopped on request; what was in flight is in the target")
                    .hint("the same command goes on from here"));
            }
            Some(broken) = scope.next() => broken?,
            () = tokio::time::sleep(ALIVE) => listener.is_alive(),
        }
    }
}

/// The broker between the halves, which two processes have to reach.
pub(super) fn require_processes(settings: &Settings) -> Result<&Via> {
    let Some(via) = &settings.via else {
        return Err(Error::new(code::CONFIG_INVALID, "one half alone needs a broker to the other one")
            .hint("give --via URL, or [run] via in the file of --config"));
    };
    match via.broker.capabilities().processes {
        How::No(why) => Err(tidegate_core::capability::missing(&via.broker.location(), "processes", why)
            .hint("--via sqlite:PATH is shared by the processes of one machine")),
        How::Native | How::Emulated(_) => Ok(via),
    }
}
