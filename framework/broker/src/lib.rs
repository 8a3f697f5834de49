//! What makes a broker of a system that lacks something of one.
//!
//! A broker of Tidegate ([`port::Broker`](tidegate_core::port::Broker)) has lanes with one owner each, subscriptions that keep what is not settled,
//! attempts, delays. Few systems have all of that, and none has it as the others do. So adapters show what their system has, and the rest is done here, once:
//!
//! | a system that | shows itself as | and becomes a broker as |
//! |---|---|---|
//! | keeps messages in order, and small documents that are compared and set | [`log::Log`] | [`log::LogBroker`] |
//! | has queues, and takes acknowledgements | [`queue::Queues`] | [`queue::QueueBroker`] |
//! | has transactions | | an adapter writes it with the parts alone |
//!
//! The parts are pure functions of what they are told: [`unsettled`] knows what of one lane is not settled, [`hand`] what a consumer has of its lanes,
//! [`seats`] who is to have which lane. [`access`] reads the URLs of all brokers.

pub mod access;
pub mod hand;
pub mod log;
mod pace;
mod publishing;
pub mod queue;
mod receiving;
pub mod seats;
mod settings;
pub mod unsettled;

pub use pace::Pace;
pub use settings::Settings;
