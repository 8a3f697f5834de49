//! What every adapter has to do, done by ActiveMQ Classic.

mod fixture;

use std::process::ExitCode;

use tidegate_services::broker::{Broker, Options};

fn main() -> ExitCode {
    fixture::program("activemq", Broker::Activemq, Options::default().with_password("password"))
}
