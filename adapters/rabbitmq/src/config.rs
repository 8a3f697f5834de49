//! What a URL says.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_broker::access::{Access, Scheme};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

/// Who a server without users of its own lets in from the same machine.
pub(crate) const GUEST: &str = "guest";

/// The server answers when a queue is made, and notes it on its disk up to 3.5 s later (half a second behind the last one, or
/// when its buffer of 3 s is over). Killed in between, it finds an empty queue without a leader where the queue was.
const RIPE: Duration = Duration::from_millis(4_000);

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) access: Access,
    /// The certificates that are trusted beside the system's, and the client's own: what stands in the files, which are not
    /// looked at again.
    pub(crate) certificates: OwnedTLSConfig,
    pub(crate) virtual_host: String,
    /// How long a queue has to be there before it is relied on.
    pub(crate) ripe: Duration,
}

/// Without the password and the key.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("access", &self.access).finish_non_exhaustive()
    }
}

/// What stands in a file of certificates, or in that of a key.
fn read(file: &Path, has: impl FnOnce(&[u8]) -> std::result::Result<(), pem::Error>) -> Result<String> {
    let failed = |error: String| {
        let text = format!("the certificate or key {} cannot be read", file.display());
        Error::new(code::TLS_FAILED, text).because(error)
    };
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    has(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
    Ok(text)
}

fn certificates(access: &Access) -> Result<OwnedTLSConfig> {
    let certificate = |file: &Path| read(file, |text| CertificateDer::from_pem_slice(text).map(drop));
    let cert_chain = access.ca.as_deref().map(certificate).transpose()?;
    let identity = match &access.certificate {
        Some((own, key)) => Some(OwnedIdentity::PKCS8 {
            pem: certificate(own)?.into(),
            key: read(key, |text| PrivateKeyDer::from_pem_slice(text).map(drop))?.into(),
        }),
        None => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let scheme = Scheme {
            names: ("amqp", "amqps"),
            ports: (5672, 5671),
            timeout: Duration::from_secs(5),
            own: &["ripe_ms"],
        };
        let access = Access::of(endpoint, &scheme)?;
        let ripe = match access.own.get("ripe_ms").map(|value| (value, value.parse())) {
            None => RIPE,
            Some((_, Ok(millis))) => Duration::from_millis(millis),
            Some((value, Err(_))) => {
                let text = format!("ripe_ms={value} is no number of milliseconds");
                return Err(Error::new(code::URL_INVALID, text));
            }
        };
        let virtual_host = if access.path.is_empty() { "/".to_owned() } else { access.path.clone() };
        let certificates = certificates(&access)?;
        Ok(Self { access, certificates, virtual_host, ripe })
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

    #[test]
    fn certificates_are_read_before_anything_is_asked_for() {
        for (settings, file) in [
            ("ca=/no/such", "/no/such"),
            ("ca=/dev/null", "/dev/null"),
            ("cert=/no/such&key=/dev/null", "/no/such"),
        ] {
            let error = config(&format!("amqps://h?{settings}")).unwrap_err();
            assert_eq!(error.code(), code::TLS_FAILED, "{settings}: {error:?}");
            assert_eq!(error.message(), format!("the certificate or key {file} cannot be read"));
            assert!(std::error::Error::source(&error).is_some(), "{error:?}");
        }
    }
}
