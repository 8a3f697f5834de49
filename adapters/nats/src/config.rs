//! What a URL says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Pace, Result, Settings};

/// Where the servers are, and how to talk to them.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) location: String,
    /// `HOST:PORT` of each.
    pub(crate) servers: Vec<String>,
    pub(crate) login: Login,
    pub(crate) has_tls: bool,
    pub(crate) ca: Option<PathBuf>,
    /// The client's own certificate, and its key.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) replicas: usize,
    pub(crate) dedupe: Duration,
    pub(crate) timeout: Duration,
    pub(crate) settings: Settings,
    /// How often connections are asked for.
    pub(crate) pace: Arc<Pace>,
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
        f.debug_struct("Config").field("location", &self.location).finish_non_exhaustive()
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
        let url = endpoint.url()?;
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| invalid("the user or the password is no UTF-8"))
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid("a URL of nats names a host: nats://host:4222"))?;
        let user = Some(decoded(url.username())?).filter(|user| !user.is_empty());
        let mut password = url.password().map(decoded).transpose()?;
        let mut config = Self {
            location: endpoint.to_string(),
            servers: vec![format!("{host}:{}", url.port().unwrap_or(4222))],
            login: Login::Nobody,
            has_tls: endpoint.scheme() == "tls",
            ca: None,
            certificate: None,
            replicas: 1,
            dedupe: Duration::from_secs(120),
            timeout: Duration::from_secs(5),
            settings: Settings::default(),
            pace: Arc::default(),
        };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "cert" => certificate = Some(PathBuf::from(&*value)),
                "key" => key = Some(PathBuf::from(&*value)),
                "password-file" => {
                    let text = read("password", &value)?;
                    password = Some(text.trim_end_matches(['\n', '\r']).to_owned());
                }
                _ => config.take(&name, &value)?,
            }
        }
        config.certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("cert=FILE and key=FILE belong together")),
        };
        config.check_certificates()?;
        if let Some(user) = user {
            // What stands there alone is a token for other programs, and would be shown here.
            let password = password.ok_or_else(|| {
                invalid("the URL names a user and no password")
                    .hint("name the file of the password with ?password-file=FILE, that of a token with ?token-file=FILE and no user")
            })?;
            config.login = Login::Password { user, password };
        }
        Ok(config)
    }

    /// Looks once whether the files can be used: the driver, which reads them for each connection, would not say which one.
    fn check_certificates(&self) -> Result<()> {
        let failed = |file: &Path, error: pem::Error| {
            let text = format!("the certificate or key {} cannot be read", file.display());
            Error::new(code::TLS_FAILED, text).because(error.to_string())
        };
        let own = self.certificate.as_ref();
        for file in self.ca.iter().chain(own.map(|(certificate, _)| certificate)) {
            CertificateDer::from_pem_file(file).map_err(|error| failed(file, error))?;
        }
        if let Some((_, key)) = own {
            PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
        }
        Ok(())
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
            "servers" => self.servers.extend(value.split(',').map(str::to_owned)),
            "ca" => self.ca = Some(value.into()),
            "token-file" => self.login = Login::Token(read("token", value)?.trim().to_owned()),
            "nkey" => self.login = Login::Nkey(read("seed", value)?.trim().to_owned()),
            "creds" => self.login = Login::Credentials(read("credentials", value)?),
            "replicas" => self.replicas = usize::try_from(number()?).unwrap_or(usize::MAX),
            "dedupe_s" => self.dedupe = Duration::from_secs(number()?),
            "timeout_ms" => self.timeout = Duration::from_millis(number()?),
            _ => {
                return Err(invalid(format!("a URL of nats has no setting {name}")).hint(
                    "known are servers, ca, cert, key, password-file, token-file, nkey, creds, replicas, dedupe_s, \
                     timeout_ms, lease_ms, grace_ms, patience_ms",
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
        let url = "tls://me:p%40ss@[::1]:7000?lease_ms=900&dedupe_s=5&replicas=3&servers=b:1,c:2";
        let config = config(url).unwrap();
        assert_eq!(config.servers, ["[::1]:7000", "b:1", "c:2"]);
        assert!(
            config.login == Login::Password { user: "me".to_owned(), password: "p@ss".to_owned() }
                && config.has_tls
        );
        assert_eq!(
            (config.replicas, config.dedupe.as_secs(), config.settings.lease.as_millis()),
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
