//! What a URL says.

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::{ClientTlsConfig, TlsCertificates};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Pace, Result, Settings};

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) location: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: i64,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) has_tls: bool,
    /// What stands in the files, which are not looked at again.
    pub(crate) certificates: TlsCertificates,
    pub(crate) dedupe: Duration,
    pub(crate) timeout: Duration,
    pub(crate) settings: Settings,
    /// How often connections are asked for.
    pub(crate) pace: Arc<Pace>,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("location", &self.location).finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(code::URL_INVALID, what)
}

/// What stands in a file of certificates, or in that of a key.
fn read<T: PemObject>(file: &str) -> Result<Vec<u8>> {
    let failed = |error: String| {
        Error::new(code::TLS_FAILED, format!("the certificate or key {file} cannot be read")).because(error)
    };
    let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
    T::from_pem_slice(&pem).map_err(|error| failed(error.to_string()))?;
    Ok(pem)
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let url = endpoint.url()?;
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| invalid("the user or the password is no UTF-8"))
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid("a URL of redis names a host: redis://host:6379"))?;
        let database = match url.path().trim_matches('/') {
            "" => 0,
            path => path.parse().map_err(|_| invalid(format!("{path:?} is no number of a database")))?,
        };
        let mut config = Self {
            location: endpoint.to_string(),
            // An address of IPv6 stands in brackets in a URL.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(6379),
            database,
            user: Some(decoded(url.username())?).filter(|user| !user.is_empty()),
            password: url.password().map(decoded).transpose()?,
            has_tls: endpoint.scheme() == "rediss",
            certificates: TlsCertificates { client_tls: None, root_cert: None },
            dedupe: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            settings: Settings::default(),
            pace: Arc::default(),
        };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "cert" => certificate = Some(value),
                "key" => key = Some(value),
                _ => config.take(&name, &value)?,
            }
        }
        let own = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("cert=FILE and key=FILE belong together")),
        };
        if let Some((certificate, key)) = own {
            if !config.has_tls {
                return Err(invalid("a certificate of the client needs TLS").hint("write rediss://"));
            }
            let (client_cert, client_key) =
                (read::<CertificateDer<'_>>(&certificate)?, read::<PrivateKeyDer<'_>>(&key)?);
            config.certificates.client_tls = Some(ClientTlsConfig { client_cert, client_key });
        }
        Ok(config)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<()> {
        if self.settings.take(name, value)? {
            return Ok(());
        }
        let number = || {
            let number = value.parse::<u64>().ok().filter(|number| *number > 0);
            number.ok_or_else(|| invalid(format!("{name}={value} is no number above 0")))
        };
        match name {
            "ca" => self.certificates.root_cert = Some(read::<CertificateDer<'_>>(value)?),
            "password-file" => {
                let text = std::fs::read_to_string(value);
                let text = text.map_err(|error| {
                    invalid(format!("the password's file {value} cannot be read")).because(error)
                })?;
                self.password = Some(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            "dedupe_s" => self.dedupe = Duration::from_secs(number()?),
            "timeout_ms" => self.timeout = Duration::from_millis(number()?),
            _ => {
                return Err(invalid(format!("a URL of redis has no setting {name}")).hint(
                    "known are ca, cert, key, password-file, dedupe_s, timeout_ms, lease_ms, grace_ms, patience_ms",
                ));
            }
        }
        Ok(())
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
        assert_eq!((&*config.host, config.port, config.database), ("::1", 7000, 2));
        assert_eq!((config.user.as_deref(), config.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(config.has_tls);
        assert_eq!((config.dedupe.as_secs(), config.settings.lease.as_millis()), (5, 900));
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
