//! Commands to one server, for programs without a runtime of their own.

use std::time::Duration;

use mongodb::Client;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;

use crate::{Error, Result};

/// Runs one command on the server at `port` itself, whatever its role. Blocks; must not be called inside a runtime.
pub(super) fn command(port: u16, command: Document) -> Result<Document> {
    let failed = |cause: &dyn std::fmt::Display| Error::failed(format!("mongod on port {port}: {cause}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("no runtime"))?;
    runtime.block_on(async {
        let url = format!("mongodb://127.0.0.1:{port}/?directConnection=true");
        let mut options = ClientOptions::parse(&url).await.map_err(|cause| failed(&cause))?;
        options.server_selection_timeout = Some(Duration::from_secs(5));
        let client = Client::with_options(options).map_err(|cause| failed(&cause))?;
        let answer = client.database("admin").run_command(command).await.map_err(|cause| failed(&cause));
        client.shutdown().immediate(true).await;
        answer
    })
}

/// Whether the server at `port` is the primary and takes writes.
pub(super) fn is_primary(port: u16) -> bool {
    command(port, doc! { "hello": 1 })
        .is_ok_and(|answer| answer.get_bool("isWritablePrimary").unwrap_or(false))
}

/// Makes a replica set `rs0` of the servers at `ports`.
pub(super) fn initiate(ports: &[u16]) -> Result<()> {
    let members: Vec<_> = (0..)
        .zip(ports)
        .map(|(id, port): (i32, _)| doc! { "_id": id, "host": format!("127.0.0.1:{port}") })
        .collect();
    let settings = doc! { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 };
    command(
        ports[0],
        doc! { "replSetInitiate": { "_id": super::SET, "members": members, "settings": settings } },
    )?;
    wait_for_primary(ports).map(drop)
}

/// Waits until one of the servers is the primary, and gives its place in `ports`.
pub(super) fn wait_for_primary(ports: &[u16]) -> Result<usize> {
    for _ in 0..300 {
        if let Some(place) = ports.iter().position(|port| is_open(*port) && is_primary(*port)) {
            return Ok(place);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(Error::failed(format!("none of the servers on {ports:?} became the primary")))
}

/// Whether anything listens; a driver would wait for its whole timeout.
pub(super) fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
