//! What a URL says.

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_broker::access::{Access, Scheme};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

/// Where the servers are, and how to talk to them.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) access: Access,
    /// `HOST:PORT` of each.
    pub(crate) servers: Vec<String>,
    pub(crate) login: Login,
    pub(crate) replicas: usize,
    pub(crate) dedupe: Duration,
}

/// Who asks. What stands in it is secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Nobody,
    Password {
        user: String,
        password: String,
    },
    Token(String),
    Nkey(String),
    /// The text of a file of credentials.
    Credentials(String),
}

/// Without secrets.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("access", &self.access).finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(code::URL_INVALID, what)
}

fn read(what: &str, file: &str) -> Result<String> {
    let text = std::fs::read_to_string(file);
    text.map_err(|error| invalid(format!("the {what}'s file {file} cannot be read")).because(error))
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let scheme = Scheme {
            names: ("nats", "tls"),
            ports: (4222, 4222),
            timeout: Duration::from_secs(5),
            own: &["servers", "token-file", "nkey", "creds", "replicas", "dedupe_s"],
        };
        let access = Access::of(endpoint, &scheme)?.without_path(&scheme)?;
        let mut servers = vec![access.server()];
        let others = access.own.get("servers").into_iter().flat_map(|others| others.split(','));
        servers.extend(others.map(str::to_owned));
        let own = |name| access.own.get(name);
        let login = if let (Some(user), Some(password)) = (&access.user, &access.password) {
            Login::Password { user: user.clone(), password: password.clone() }
        } else if let Some(file) = own("token-file") {
            Login::Token(read("token", file)?.trim().to_owned())
        } else if let Some(file) = own("nkey") {
            Login::Nkey(read("seed", file)?.trim().to_owned())
        } else if let Some(file) = own("creds") {
            Login::Credentials(read("credentials", file)?)
        } else {
            Login::Nobody
        };
        let replicas = usize::try_from(access.number("replicas")?.unwrap_or(1)).unwrap_or(usize::MAX);
        let dedupe = Duration::from_secs(access.number("dedupe_s")?.unwrap_or(120));
        let config = Self { access, servers, login, replicas, dedupe };
        config.check_certificates()?;
        Ok(config)
    }

    /// Looks once whether the files can be used: the driver, which reads them for each connection, would not say which one.
    fn check_certificates(&self) -> Result<()> {
        let failed = |file: &Path, error: pem::Error| {
            let text = format!("the certificate or key {} cannot be read", file.display());
            Error::new(code::TLS_FAILED, text).because(error.to_string())
        };
        let own = self.access.certificate.as_ref();
        for file in self.access.ca.iter().chain(own.map(|(certificate, _)| certificate)) {
            CertificateDer::from_pem_file(file).map_err(|error| failed(file, error))?;
        }
        if let Some((_, key)) = own {
            PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
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
        let url = "tls://me:p%40ss@[::1]:7000?lease_ms=900&dedupe_s=5&replicas=3&servers=b:1,c:2";
        let config = config(url).unwrap();
        assert_eq!(config.servers, ["[::1]:7000", "b:1", "c:2"]);
        assert!(
            config.login == Login::Password { user: "me".to_owned(), password: "p@ss".to_owned() }
                && config.access.has_tls
        );
        assert_eq!(
            (config.replicas, config.dedupe.as_secs(), config.access.settings.lease.as_millis()),
            (3, 5, 900)
        );
        let shown = format!("{config:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40"), "{shown}");
    }

    #[test]
    fn a_login_may_stand_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "s3cret\n").unwrap();
        let path = file.path().display();
        for (url, login) in [
            (format!("nats://h?token-file={path}"), Login::Token("s3cret".to_owned())),
            (format!("nats://h?nkey={path}"), Login::Nkey("s3cret".to_owned())),
            (format!("nats://h?creds={path}"), Login::Credentials("s3cret\n".to_owned())),
            (
                format!("nats://me@h?password-file={path}"),
                Login::Password { user: "me".to_owned(), password: "s3cret".to_owned() },
            ),
        ] {
            let config = config(&url).unwrap();
            assert!(config.login == login && !format!("{config:?}").contains("s3cret"), "{url}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (url, named) in [
            ("nats://h?lease=1", "a URL of nats has no setting lease"),
            ("nats://h?dedupe_s=0", "dedupe_s=0 is no number above 0"),
            ("nats://h?timeout_ms=0", "timeout_ms=0 is no number above 0"),
            ("tls://h?key=/k", "cert=FILE and key=FILE belong together"),
            ("nats://me@h?password-file=/no/such", "the password's file /no/such cannot be read"),
            ("nats://", "a URL of nats names a host: nats://host:4222"),
            ("nats://h?replicas=x", "replicas"),
            ("nats://h?creds=/no/such", "/no/such"),
            ("nats://t0ken@h", "no password"),
            ("nats://h/orders", "a URL of nats has no path"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
            assert!(!format!("{error:?}").contains("t0ken"), "{error:?}");
        }
    }

    #[test]
    fn certificates_are_read_before_anything_is_asked_for() {
        for (settings, file) in [
            ("ca=/no/such", "/no/such"),
            ("ca=/dev/null", "/dev/null"),
            ("cert=/no/such&key=/dev/null", "/no/such"),
        ] {
            let error = config(&format!("tls://h?{settings}")).unwrap_err();
            assert_eq!(error.code(), code::TLS_FAILED, "{settings}: {error:?}");
            assert_eq!(error.message(), format!("the certificate or key {file} cannot be read"));
            assert!(std::error::Error::source(&error).is_some(), "{error:?}");
        }
    }
}
