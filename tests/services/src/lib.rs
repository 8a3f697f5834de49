//! Real servers for tests, without containers.
//!
//! Each server has its own folder, its own free port on 127.0.0.1 and its own process; it is ended by its pid and
//! never outlives the process that asked for it. What is not installed is fetched once and kept in a cache folder
//! (`TIDEGATE_CACHE`, else `~/.cache/tidegate`).
//!
//! ```no_run
//! # async fn test() -> tidegate_services::Result<()> {
//! use tidegate_services::postgres::{Options, Server};
//!
//! let server = Server::start(Options::default()).await?;
//! let url = server.create_database("shop").await?;
//! server.kill().await; // the whole server crashes, nothing is flushed
//! server.restart().await?; // same folder, same port: what was committed is there again
//! # Ok(())
//! # }
//! ```
//!
//! A test that only needs *a* server asks for the shared one, and ends where its service is skipped by name
//! (`TIDEGATE_SKIP=mongodb`):
//!
//! ```no_run
//! # async fn test() {
//! let Some(postgres) = tidegate_services::postgres::shared().await else { return };
//! let url = postgres.create_database("orders").await.unwrap();
//! # }
//! ```
//!
//! # Which services there are
//!
//! | service | where it comes from | where another one is named |
//! |---|---|---|
//! | `postgresql` | Debian's `postgresql-15` | `TIDEGATE_TEST_POSTGRES_URL` |
//! | `mongodb`, a replica set | a wheel that holds `mongod` | `TIDEGATE_TEST_MONGODB_URL` |
//! | `redis` | Debian's `redis-server` | `TIDEGATE_TEST_REDIS_URL` |
//! | `rabbitmq` | Debian's `rabbitmq-server` | `TIDEGATE_TEST_RABBITMQ_URL` |
//! | `nats` with JetStream | built by Go, which comes from a wheel if need be | `TIDEGATE_TEST_NATS_URL` |
//! | `kafka`, broker and controller in one | jars by Maven, Java 17 | `TIDEGATE_TEST_KAFKA_URL` |
//! | `artemis` | jars by Maven, Java 17 | `TIDEGATE_TEST_ARTEMIS_URL` |
//! | `activemq`, the classic one | jars by Maven, Java 17 | `TIDEGATE_TEST_ACTIVEMQ_URL` |
//!
//! The test command starts those in use ([`Service::is_used`]): PostgreSQL, MongoDB, Redis, RabbitMQ, NATS, Kafka
//! and Artemis, and what `TIDEGATE_USE` names. A test of another service ends at once and is counted as skipped. `cargo xtask services up NAME` fetches and starts any of them.
//!
//! What programs in other languages talk to brokers with is fetched in the same way: [`Client`].
//!
//! # Adding a service
//!
//! A broker is one file with a recipe in [`broker`] and one variant of [`broker::Broker`]; another kind of server is a
//! folder beside [`postgres`] and [`mongodb`] with `install.rs` (find it, or fetch it) and a `Server`. Both are one
//! variant of [`Service`]. Cache, accounts, ports, folders and processes are shared.

mod account;
pub mod broker;
mod cache;
mod certificate;
mod client;
mod debian;
mod error;
mod folder;
mod go;
mod java;
pub mod mongodb;
mod offload;
mod port;
pub mod postgres;
mod process;
mod running;
mod service;
mod url;
mod wheel;

pub use client::Client;
pub use error::{Error, Missing, Result};
pub use process::{Background, is_running};
pub use running::Running;
pub use service::{Service, available, given_url, provision, skipped};

pub use cache::folder as cache_folder;
pub use debian::{program as debian_program, provision_build};
pub use go::command as go_command;
