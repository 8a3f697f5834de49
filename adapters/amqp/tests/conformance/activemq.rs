//! What every adapter has to do, done by ActiveMQ Classic.

mod fixture;

use std::process::ExitCode;

use tidegate_services::broker::{Broker, Options};

fn main() -> ExitCode {
    // Messages as they are if nobody says otherwise.
    let options = Options::default().with_password("password").with_setting("transformer", "native");
    fixture::program("activemq", Broker::Activemq, options)
}
