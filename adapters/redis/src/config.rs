//! What a URL says.

use std::path::Path;
use std::time::Duration;

use redis::{ClientTlsConfig, TlsCertificates};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_broker::access::{Access, Scheme};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) access: Access,
    pub(crate) database: i64,
    /// What stands in the files, which are not looked at again.
    pub(crate) certificates: TlsCertificates,
    pub(crate) dedupe: Duration,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("access", &self.access).finish_non_exhaustive()
    }
}

/// What stands in a file of certificates, or in that of a key.
fn read<T: PemObject>(file: &Path) -> Result<Vec<u8>> {
    let failed = |error: String| {
        let text = format!("the certificate or key {} cannot be read", file.display());
        Error::new(code::TLS_FAILED, text).because(error)
    };
    let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    T::from_pem_slice(&pem).map_err(|error| failed(error.to_string()))?;
    Ok(pem)
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let scheme = Scheme {
            names: ("redis", "rediss"),
            ports: (6379, 6379),
            timeout: Duration::from_secs(5),
            own: &["dedupe_s"],
        };
        let access = Access::of(endpoint, &scheme)?;
        let database = match &*access.path {
            "" => 0,
            path => path
                .parse()
                .map_err(|_| Error::new(code::URL_INVALID, format!("{path:?} is no number of a database")))?,
        };
        let root_cert = access.ca.as_deref().map(read::<CertificateDer<'_>>).transpose()?;
        let client_tls = match &access.certificate {
            Some((certificate, key)) => Some(ClientTlsConfig {
                client_cert: read::<CertificateDer<'_>>(certificate)?,
                client_key: read::<PrivateKeyDer<'_>>(key)?,
            }),
            None => None,
        };
        let dedupe = Duration::from_secs(access.number("dedupe_s")?.unwrap_or(60));
        Ok(Self { access, database, certificates: TlsCertificates { client_tls, root_cert }, dedupe })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<Config> {
        Config::of(&Endpoint::parse(url).unwrap())
    }

    #[test]
    fn a_url_is_taken_apart_and_its_password_is_not_shown() {
        let config = config("rediss://me:p%40ss@[::1]:7000/2?lease_ms=900&dedupe_s=5").unwrap();
        assert_eq!((config.access.server(), config.database), ("[::1]:7000".to_owned(), 2));
        assert_eq!((config.access.has_tls, config.dedupe.as_secs()), (true, 5));
        assert!(
            !format!("{config:?}").contains("p@ss") && !format!("{config:?}").contains("p%40"),
            "{config:?}"
        );
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (url, named) in [
            ("redis://h?lease=1", "a URL of redis has no setting lease"),
            ("redis://h?dedupe_s=0", "dedupe_s=0 is no number above 0"),
            ("redis://h?timeout_ms=0", "timeout_ms=0 is no number above 0"),
            ("rediss://h?cert=/c", "cert=FILE and key=FILE belong together"),
            ("redis://h?cert=/c&key=/k", "a certificate of the client needs TLS"),
            ("redis:///0", "a URL of redis names a host: redis://host:6379"),
            ("redis://me@h", "the URL names a user and no password"),
            ("redis://h?lease_ms=x", "lease_ms"),
            ("redis://h/x", "x"),
            ("redis://h?password-file=/no/such", "/no/such"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn certificates_are_read_before_anything_is_asked_for() {
        for (settings, file) in [
            ("ca=/no/such", "/no/such"),
            ("ca=/dev/null", "/dev/null"),
            ("cert=/no/such&key=/dev/null", "/no/such"),
        ] {
            let error = config(&format!("rediss://h?{settings}")).unwrap_err();
            assert_eq!(error.code(), code::TLS_FAILED, "{settings}: {error:?}");
            assert_eq!(error.message(), format!("the certificate or key {file} cannot be read"));
            assert!(std::error::Error::source(&error).is_some(), "{error:?}");
        }
    }
}
