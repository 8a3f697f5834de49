//! What every adapter has to do, done by ActiveMQ Classic.

mod fixture;

use std::process::ExitCode;

use bytes::{BufMut as _, BytesMut};
use fixture::failed;
use tidegate_core::error::code;
use tidegate_core::{Channel, Error, Result, Subscription};
use tidegate_services::broker::{Broker, Options, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn main() -> ExitCode {
    // Messages as they are if nobody says otherwise.
    let options = Options::default().with_password("password").with_setting("transformer", "native");
    fixture::program("activemq", Broker::Activemq, options, |server, channel, subscription| {
        Box::pin(destroy(server, channel, subscription))
    })
}

/// Over the server's own protocol: a hello, a login, and a command a queue, each answered by a frame of the kind 30.
async fn destroy(server: Server, channel: Channel, subscription: Subscription) -> Result<()> {
    let none = || Error::new(code::INTERNAL, "the server has no port of OpenWire");
    let port = server.openwire_port().ok_or_else(none)?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(failed)?;
    let text = |text: &str| [&[1, 0, u8::try_from(text.len()).unwrap_or(u8::MAX)], text.as_bytes()].concat();
    let console = [&[1, 120], &text("console")[..]].concat();
    let login = [&console[..], &text("console"), &text("password"), &text("user"), &[0; 3]].concat();
    let mut frames =
        vec![[b"\x01ActiveMQ\0\0\0\x01\0".to_vec()].concat(), [&[3, 0, 0, 0, 0, 1], &login[..]].concat()];
    for lane in 0..channel.lanes {
        let queue = format!("Consumer.{}.VirtualTopic.tidegate.{}.{lane}", subscription.name, channel.name);
        let end = [1, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        frames.push([&[8, 0, 0, 0, 1, 1], &console[..], &[1, 100], &text(&queue), &end].concat());
    }
    let mut out = BytesMut::new();
    for frame in &frames {
        out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
        out.put_slice(frame);
    }
    stream.write_all(&out).await.map_err(failed)?;
    let mut answers = 1;
    while answers < frames.len() {
        let mut frame = vec![0; stream.read_u32().await.map_err(failed)? as usize];
        stream.read_exact(&mut frame).await.map_err(failed)?;
        match frame.first() {
            Some(30) => answers += 1,
            Some(31) => return Err(Error::new(code::INTERNAL, "the server did not remove a queue")),
            _ => {}
        }
    }
    Ok(())
}
