//! What every adapter has to do, done by Artemis.

mod fixture;

use std::process::ExitCode;

use tidegate_services::broker::{Broker, Options};

fn main() -> ExitCode {
    // As it is set up at first, a member that is not heard of keeps its lanes for a minute.
    let options =
        Options::default().with_setting("acceptorConfigurations.all.extraParams.amqpIdleTimeout", 4_000);
    fixture::program("artemis", Broker::Artemis, options)
}
