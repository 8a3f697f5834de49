//! Free ports that stay a server's own while it is down.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::{Error, Result};

/// Below the range from which the system takes the ports of outgoing connections: a client that knocks at the port of a
/// killed server must not end up connected to itself.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port of 127.0.0.1 that no other server of this crate takes while the value lives.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: u16,
    _lock: File,
}

impl Port {
    pub(crate) fn reserve() -> Result<Port> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes start at different places, so that they rarely look at the same port.
        let start = u16::try_from((std::process::id() * 37) % u32::from(COUNT)).unwrap_or(0);
        for _ in 0..COUNT {
            let number = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
            let Some(lock) = claim(number)? else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Port { number, _lock: lock });
            }
        }
        Err(Error::failed("no free port"))
    }
}

fn claim(number: u16) -> Result<Option<File>> {
    // A folder for each user: what one has made, another may not write into.
    let user = rustix::process::geteuid().as_raw();
    let folder: PathBuf = std::env::temp_dir().join(format!("tidegate-ports-{user}"));
    fs::create_dir_all(&folder).map_err(Error::io("no folder for the locks of ports"))?;
    let Ok(file) = File::create(folder.join(number.to_string())) else { return Ok(None) };
    Ok(file.try_lock().is_ok().then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_never_share_a_port() {
        let ports: Vec<_> = (0..20).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(|port| port.number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 20);
        assert!(claim(ports[0].number).unwrap().is_none());
    }
}
