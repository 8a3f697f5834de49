//! Removes queues of ActiveMQ Classic over OpenWire, its own protocol: AMQP has no word for that.
//!
//! Frames are a length and a command; all numbers are big-endian. What is spoken is the first version of the protocol without its
//! extras (tight encoding, caches), which every server since has: a client that announces nothing gets that. Fields as in the
//! OpenWire documents of ActiveMQ, <https://activemq.apache.org/components/classic/documentation/openwire>.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use tidegate_broker::access::Access;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::connect::{tls, unique};

const WIRE_FORMAT: u8 = 1;
const CONNECTION: u8 = 3;
const DESTINATION: u8 = 8;
const RESPONSE: u8 = 30;
const FAILED: u8 = 31;
const QUEUE: u8 = 100;
const CONNECTION_ID: u8 = 120;
const REMOVE: u8 = 1;
/// How long, in milliseconds, the server waits for consumers to go away before it removes a queue under them; without any it
/// refuses.
const NO_MATTER_WHO_READS: i64 = 1;
/// How large a frame may be: what a server says of itself is the largest.
const FRAME_MAX: usize = 1 << 20;
const OPERATION: &str = "remove a queue";

/// Removes queues with everything in them; those that are not there are left out.
pub(crate) async fn remove(access: &Access, port: u16, queues: &[String]) -> Result<()> {
    let removing = async {
        let stream = TcpStream::connect((&*access.host, port)).await;
        let stream = stream.map_err(|error| unreachable(port, error))?;
        match access.has_tls.then(|| tls(access)).transpose()? {
            None => talk(stream, access, queues).await,
            Some((connector, name)) => {
                let stream = connector.connect(name, stream).await;
                talk(stream.map_err(|error| unreachable(port, error))?, access, queues).await
            }
        }
    };
    let time = access.timeout + Duration::from_millis(50) * u32::try_from(queues.len()).unwrap_or(u32::MAX);
    tokio::time::timeout(time, removing).await.unwrap_or_else(|_| Err(crate::error::timed_out(OPERATION)))
}

fn unreachable(port: u16, error: std::io::Error) -> Error {
    Error::new(
        code::UNREACHABLE,
        format!("port {port} of the server does not answer, where queues are removed by OpenWire"),
    )
    .hint("name the port of its openwire connector with ?openwire=61616")
    .because(error)
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    access: &Access,
    queues: &[String],
) -> Result<()> {
    let lost = |error: std::io::Error| {
        Error::new(code::CONNECTION_LOST, "the connection was lost")
            .with("operation", OPERATION)
            .because(error)
    };
    let me = unique("removing");
    let mut hello = vec![WIRE_FORMAT];
    hello.put_slice(b"ActiveMQ");
    hello.put_i32(1);
    hello.put_u8(0);
    let mut out = framed(&hello);
    let mut login = identity(&me);
    text(&mut login, Some(&me));
    text(&mut login, access.password.as_deref());
    text(&mut login, access.user.as_deref());
    // No path of brokers; neither a broker, nor to be managed.
    login.put_bytes(0, 3);
    out.extend(command(CONNECTION, 0, &login));
    for (number, queue) in (1..).zip(queues) {
        let mut asked = identity(&me);
        asked.put_slice(&[1, QUEUE]);
        text(&mut asked, Some(queue));
        asked.put_u8(REMOVE);
        asked.put_i64(NO_MATTER_WHO_READS);
        asked.put_u8(0);
        out.extend(command(DESTINATION, number, &asked));
    }
    stream.write_all(&out).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut answers = 0;
    while answers <= queues.len() {
        let length = stream.read_u32().await.map_err(lost)? as usize;
        if length > FRAME_MAX {
            return Err(Error::new(code::VERSION_UNSUPPORTED, "the server does not speak OpenWire there"));
        }
        let mut frame = vec![0; length];
        stream.read_exact(&mut frame).await.map_err(lost)?;
        match frame.first() {
            Some(&RESPONSE) => answers += 1,
            Some(&FAILED) => return Err(refused(&frame)),
            // What the server says of itself.
            _ => {}
        }
    }
    Ok(())
}

/// A command that is to be answered.
fn command(kind: u8, number: i32, fields: &[u8]) -> Vec<u8> {
    let mut command = vec![kind];
    command.put_i32(number);
    command.put_u8(1);
    command.put_slice(fields);
    framed(&command)
}

fn framed(command: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(4 + command.len());
    frame.put_u32(u32::try_from(command.len()).unwrap_or(u32::MAX));
    frame.put_slice(command);
    frame
}

fn identity(me: &str) -> Vec<u8> {
    let mut identity = vec![1, CONNECTION_ID];
    text(&mut identity, Some(me));
    identity
}

fn text(out: &mut Vec<u8>, text: Option<&str>) {
    out.put_u8(u8::from(text.is_some()));
    if let Some(text) = text {
        out.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
        out.put_slice(text.as_bytes());
    }
}

/// What an answer says that is none: a class of exceptions, and its words.
fn refused(frame: &[u8]) -> Error {
    // Behind the kind, the number, a flag, the number of the command, and whether there is an exception.
    let mut rest = frame.get(11..).unwrap_or_default();
    let mut next = || {
        if rest.len() < 3 || rest.get_u8() == 0 {
            return String::new();
        }
        let length = usize::from(rest.get_u16()).min(rest.len());
        let (text, behind) = rest.split_at(length);
        rest = behind;
        String::from_utf8_lossy(text).into_owned()
    };
    let (class, words) = (next(), next());
    let error = if class.contains("Security") || words.contains("not authorized") {
        Error::new(code::ACCESS_DENIED, "the user may not remove queues")
            .hint("its group needs the right admin of the queues tidegate.> and Consumer.>")
    } else {
        Error::new(code::STORE_FAILED, "the server could not remove a queue").verdict_is(Verdict::Unknown)
    };
    error.with("operation", OPERATION).because(format!("{class}: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_words_of_the_server() {
        let mut frame = vec![FAILED];
        frame.put_bytes(0, 9);
        frame.put_u8(1);
        text(&mut frame, Some("java.lang.SecurityException"));
        text(&mut frame, Some("User x is not authorized to remove"));
        let error = refused(&frame);
        assert_eq!(error.code(), code::ACCESS_DENIED);
        assert!(format!("{error:?}").contains("User x"), "{error:?}");
        assert_eq!(refused(&[FAILED]).code(), code::STORE_FAILED);
    }
}
