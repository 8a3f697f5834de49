//! The shortest conversation that a working broker can have.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(1);
/// No answer that is waited for is longer.
const LONGEST: usize = 64 * 1024;

/// Sends `request` to a port of this machine and reads until `is_enough`; false if it does not come to that.
pub(super) fn answers(port: u16, request: &[u8], is_enough: impl Fn(&[u8]) -> bool) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, LIMIT) else { return false };
    let prepared = stream
        .set_read_timeout(Some(LIMIT))
        .and_then(|()| stream.set_write_timeout(Some(LIMIT)))
        .and_then(|()| stream.write_all(request));
    if prepared.is_err() {
        return false;
    }
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !is_enough(&answer) && answer.len() < LONGEST {
        match stream.read(&mut part) {
            Ok(count @ 1..) => answer.extend_from_slice(&part[..count]),
            Ok(_) | Err(_) => return false,
        }
    }
    is_enough(&answer)
}

/// Whether the broker answers the header of AMQP 1.0 with SASL by its own.
pub(super) fn speaks_amqp_1(port: u16) -> bool {
    const HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";
    answers(port, HEADER, |answer| answer.starts_with(HEADER))
}

/// Whether `part` is somewhere in `whole`.
pub(super) fn contains(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}
