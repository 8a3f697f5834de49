//! What of a server is unsafe, as far as a client can see.

use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use lapin::Connection;
use lapin::tcp::AMQPUriTcpExt as _;
use tidegate_core::Result;
use tidegate_core::port::Effective;

use crate::config::{Config, GUEST};
use crate::connect::uri;

/// How a client begins.
const HELLO: &[u8] = b"AMQP\x00\x00\x09\x01";
/// How much of the answer is read at most.
const ANSWER_MAX: usize = 8 << 10;

pub(crate) async fn probe(config: &Config, connection: &Connection) -> Result<Effective> {
    let version = match tokio::time::timeout(config.access.timeout, greeting(config)).await {
        Ok(answer) => version(&answer?),
        Err(_) => None,
    };
    let mut notes = config.access.notes();
    if connection.status().username() == GUEST && config.access.password.as_deref().unwrap_or(GUEST) == GUEST
    {
        notes.push(
            "the user guest has the password that everybody knows: make another user, and remove guest"
                .to_owned(),
        );
    }
    if connection.configuration().heartbeat() == 0 {
        notes.push(
            "the server does without heartbeats: a consumer that hangs keeps its lanes until its connection ends"
                .to_owned(),
        );
    }
    if connection.status().blocked() {
        notes.push("the server takes no messages now: it is short of memory or disk".to_owned());
    }
    match version.as_deref().and_then(|version| version.split('.').next()).map(str::parse::<u32>) {
        Some(Ok(major)) if major >= 4 => {}
        Some(Ok(3)) => notes.push(
            "this release of RabbitMQ is not maintained any more: on a cluster, update it to 4 or newer"
                .to_owned(),
        ),
        _ => notes.push("which release of RabbitMQ it is could not be read".to_owned()),
    }
    Ok(Effective {
        version: format!("RabbitMQ {}", version.as_deref().unwrap_or("unknown")),
        warnings: Vec::new(),
        notes,
    })
}

/// What the server says first, before any login: who it is.
async fn greeting(config: &Config) -> Result<Vec<u8>> {
    let failed = |error| crate::error::from_connect(&lapin::Error::from(error));
    let runtime = lapin::runtime::default_runtime().map_err(|error| crate::error::from_connect(&error))?;
    let opened = uri(config).connect_with_config_async(config.certificates.as_ref(), &runtime).await;
    let mut stream = opened.map_err(failed)?;
    stream.write_all(HELLO).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1 << 10];
    while answer.len() < ANSWER_MAX && !is_whole(&answer) {
        match stream.read(&mut piece).await.map_err(failed)? {
            0 => break,
            count => answer.extend_from_slice(&piece[..count]),
        }
    }
    Ok(answer)
}

/// A frame says its length behind its kind and its channel; one byte ends it.
fn is_whole(answer: &[u8]) -> bool {
    let length = answer.get(3..7).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
    length.is_some_and(|length| answer.len() >= length as usize + 8)
}

/// The property `version` of the server: a long text.
fn version(answer: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\x07versionS";
    let at = answer.windows(NAME.len()).position(|part| part == NAME)? + NAME.len();
    let length = u32::from_be_bytes(answer.get(at..at + 4)?.try_into().ok()?) as usize;
    String::from_utf8(answer.get(at + 4..at + 4 + length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_greeting() {
        let answer = [&[1, 0, 0, 0, 0, 0, 18][..], b"\x07versionS\0\0\0\x053.9.1xx", &[0xce]].concat();
        assert!(is_whole(&answer) && !is_whole(&answer[..20]));
        assert_eq!(version(&answer).as_deref(), Some("3.9.1"));
        assert_eq!(version(&answer[..14]), None);
    }
}
