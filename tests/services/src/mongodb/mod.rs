//! MongoDB servers, each a member of a replica set.

mod admin;
mod install;
mod member;
mod options;
mod replica_set;
mod server;
mod shared;

pub(crate) use install::{locate, provision};
pub use options::Options;
pub use replica_set::ReplicaSet;
pub use server::Server;
pub use shared::{Shared, shared};

/// The name of every replica set.
const SET: &str = "rs0";

/// The URL of a replica set.
fn set_url(ports: &[u16], database: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("mongodb://{}/{database}?replicaSet={SET}", hosts.join(","))
}
