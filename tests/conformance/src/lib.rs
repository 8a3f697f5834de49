//! What every adapter has to do, as a table of cases.
//!
//! An adapter writes a [`Fixture`]: how its system is started, stopped, killed and cleaned up. The suite does the rest.
//! It selects by the capabilities that the product code declares: a case runs, or a capability says "no" and the suite
//! checks that asking for it is refused. Nothing is passed over in silence: what could not be run is named.
//!
//! An adapter's test target is one call of [`main!`]:
//!
//! ```no_run
//! # struct MyFixture;
//! # impl MyFixture { fn new() -> Self { MyFixture } }
//! # #[async_trait::async_trait]
//! # impl tidegate_conformance::Fixture for MyFixture {
//! #     fn adapter(&self) -> &'static str { "mine" }
//! #     async fn start(&mut self) -> tidegate_core::Result<std::sync::Arc<dyn tidegate_core::port::Broker>> { panic!() }
//! #     async fn connect(&mut self) -> tidegate_core::Result<std::sync::Arc<dyn tidegate_core::port::Broker>> { panic!() }
//! #     async fn stranger(&mut self) -> tidegate_core::Result<Option<std::sync::Arc<dyn tidegate_core::port::Broker>>> { panic!() }
//! #     async fn restart(&mut self) -> tidegate_core::Result<std::sync::Arc<dyn tidegate_core::port::Broker>> { panic!() }
//! #     async fn kill(&mut self, _: &tidegate_core::Channel, _: &str) -> tidegate_core::Result<tidegate_conformance::Killed> { panic!() }
//! #     async fn cut(&mut self) -> tidegate_core::Result<tidegate_conformance::Hook> { panic!() }
//! #     fn network(&self) -> Result<std::sync::Arc<dyn tidegate_conformance::Network>, &'static str> { panic!() }
//! #     async fn lose_answers(&mut self, _: usize) -> tidegate_core::Result<tidegate_conformance::Hook> { panic!() }
//! #     async fn remove(&mut self, _: &tidegate_core::Channel, _: &tidegate_core::Subscription) -> tidegate_core::Result<tidegate_conformance::Hook> { panic!() }
//! #     async fn kept(&mut self, _: &tidegate_core::Channel) -> tidegate_core::Result<Option<u64>> { panic!() }
//! #     async fn clean_up(&mut self) -> tidegate_core::Result<()> { panic!() }
//! # }
//! tidegate_conformance::main!(MyFixture::new());
//! ```
//!
//! The oracle ([`Oracle`]) stands outside of the system: it is told every answer of a producer, every delivery and
//! every settlement, and says what was lost, changed, made up, out of order, or came again.

mod broker;
mod case;
mod fixture;
mod golden;
mod oracle;
mod program;
mod proxy;
mod sink;
mod state;
mod timers;
mod transactional;

pub use broker::CASES;
pub use case::{Case, Outcome, Row, Size, run};
pub use fixture::{
    Calls, Counted, Fixture, Hook, Killed, kill_while_publishing, numbered, publish_until_killed,
};
pub use golden::{Part, golden, golden_channel};
pub use oracle::Oracle;
pub use program::program;
pub use proxy::{Network, Proxy, Traffic};
pub use sink::{
    Seats, a_table_that_another_one_replaced_is_named, a_table_that_is_gone_is_named, full,
    keeps_rivals_apart,
};
pub use state::a_lease_is_one_holders;
pub use timers::{OpenTimers, TIMER_CASES, TimerCase, keeps_timers};
pub use transactional::notes_are_in_the_transaction_of_the_effect;

/// The `main` of an adapter's conformance target, with how its fixture is made.
#[macro_export]
macro_rules! main {
    ($fixture:expr) => {
        fn main() -> std::process::ExitCode {
            $crate::program(|| Box::new($fixture))
        }
    };
}
