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
//! # Adding a service
//!
//! One folder beside [`postgres`] and [`mongodb`] with `install.rs` (find it, or fetch it) and a `Server`; one
//! variant of [`Service`]. Cache, accounts, ports, folders and processes are shared.

mod account;
mod cache;
mod certificate;
mod debian;
mod error;
mod folder;
pub mod mongodb;
mod offload;
mod port;
pub mod postgres;
mod process;
mod running;
mod service;
mod url;
mod wheel;

pub use error::{Error, Missing, Result};
pub use process::{Background, is_running};
pub use running::Running;
pub use service::{Service, available, given_url, provision, skipped};

pub use cache::folder as cache_folder;
pub use debian::program as debian_program;
