//! Tidegate: data that moves.
//!
//! This crate is the door to the others and has no logic of its own: the vocabulary and the ports
//! ([`core`]), services that handle the messages of a broker ([`runtime`]), crawl and capture from one store to another
//! ([`flow`]), and the stores and brokers whose features are on, by their URLs ([`open`]).
//!
//! ```
//! use tidegate::prelude::*;
//!
//! let store = tidegate::open::store("sqlite:shop.db")?; // nothing is opened before a port is asked for
//! assert!(store.location().ends_with("shop.db"));
//! # Ok::<(), Error>(())
//! ```

pub mod open;

pub use tidegate_core as core;
pub use tidegate_flow as flow;
pub use tidegate_runtime as runtime;

#[cfg(feature = "artemis")]
pub use tidegate_amqp as artemis;
#[cfg(feature = "kafka")]
pub use tidegate_kafka as kafka;
#[cfg(feature = "memory")]
pub use tidegate_memory as memory;
#[cfg(feature = "mongodb")]
pub use tidegate_mongodb as mongodb;
#[cfg(feature = "nats")]
pub use tidegate_nats as nats;
#[cfg(feature = "postgres")]
pub use tidegate_postgres as postgres;
#[cfg(feature = "rabbitmq")]
pub use tidegate_rabbitmq as rabbitmq;
#[cfg(feature = "redis")]
pub use tidegate_redis as redis;
#[cfg(feature = "sqlite")]
pub use tidegate_sqlite as sqlite;

/// What nearly every program needs.
pub mod prelude {
    pub use tidegate_core::port::{Attempt, Broker};
    pub use tidegate_core::port::{Join, Made, MadeColumn, Recipe, Record, Store, Transform};
    pub use tidegate_core::{
        Channel, Clock, Column, Endpoint, Error, FlowName, Headers, Message, Result, Subscription,
        SystemClock, SystemIds, Table, Type, Value,
    };
    pub use tidegate_flow::{Flow, Gauge, Options, Transformed, Until, Wanted, plan, run_once};
    pub use tidegate_runtime::{
        Aggregator, Begun, Caller, Committed, Failure, Handle, Handlers, Inbox, Info, Json, Metrics, Once,
        Policy, Priority, Scheduler, Sender, Service, State, Typed,
    };
}

/// The programs of the book.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../../docs/services.md")]
    struct Services;
}
