//! What a URL says.

use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::queue::Access;
use tidegate_core::{Endpoint, Error, Result};

/// Who a server without users of its own lets in from the same machine.
pub(crate) const GUEST: &str = "guest";

/// The server answers when a queue is made, and notes it on its disk up to 3.5 s later (half a second behind the last one, or
/// when its buffer of 3 s is over). Killed in between, it finds an empty queue without a leader where the queue was.
const RIPE: Duration = Duration::from_millis(4_000);

/// Where the server is, and how to talk to it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) access: Access,
    pub(crate) virtual_host: String,
    /// How long a queue has to be there before it is relied on.
    pub(crate) ripe: Duration,
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let access = Access::of(endpoint, "amqp", &["ripe_ms"])?;
        let ripe = match access.own.get("ripe_ms").map(|value| (value, value.parse())) {
            None => RIPE,
            Some((_, Ok(millis))) => Duration::from_millis(millis),
            Some((value, Err(_))) => {
                let text = format!("ripe_ms={value} is no number of milliseconds");
                return Err(Error::new(code::URL_INVALID, text));
            }
        };
        let virtual_host = if access.path.is_empty() { "/".to_owned() } else { access.path.clone() };
        Ok(Self { access, virtual_host, ripe })
    }

    /// How often both sides say that they are there, in seconds: who is not heard of for two of them is gone.
    pub(crate) fn heartbeat(&self) -> u16 {
        let seconds = self.access.settings.lease.as_millis().div_ceil(1_000);
        u16::try_from(seconds).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<Config> {
        Config::of(&Endpoint::parse(url).unwrap())
    }

    #[test]
    fn the_path_is_the_virtual_host() {
        for (url, host) in [
            ("amqp://h", "/"),
            ("amqps://h/", "/"),
            ("amqp://h/%2F", "/"),
            ("amqp://h/x", "x"),
            ("amqp://h/a%2Fb", "a/b"),
        ] {
            assert_eq!(config(url).unwrap().virtual_host, host, "{url}");
        }
    }

    #[test]
    fn what_is_the_servers_own_is_read() {
        let config = config("amqp://h?ripe_ms=0&lease_ms=1500").unwrap();
        assert_eq!((config.ripe, config.heartbeat()), (Duration::ZERO, 2));
        let error = self::config("amqp://h?ripe_ms=x").unwrap_err();
        assert!(error.code() == code::URL_INVALID && error.message().contains("ripe_ms"), "{error}");
    }
}
