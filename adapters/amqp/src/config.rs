//! What a URL says.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tidegate_core::error::code;
use tidegate_core::queue::Settings;
use tidegate_core::{Endpoint, Error, Result};

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) location: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) has_tls: bool,
    pub(crate) ca: Option<PathBuf>,
    /// The client's own certificate, and its key.
    pub(crate) certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) timeout: Duration,
    pub(crate) settings: Settings,
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

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let url = endpoint.url()?;
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| invalid("the user or the password is no UTF-8"))
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid("an artemis URL names a host: artemis://host:5672"))?;
        let has_tls = endpoint.scheme() == "artemiss";
        if !url.path().trim_start_matches('/').is_empty() {
            return Err(invalid("an artemis URL has no path").hint("channels are named where they are used"));
        }
        let mut config = Self {
            location: endpoint.to_string(),
            // An address of IPv6 stands in brackets in a URL.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if has_tls { 5671 } else { 5672 }),
            user: Some(decoded(url.username())?).filter(|user| !user.is_empty()),
            password: url.password().map(decoded).transpose()?,
            has_tls,
            ca: None,
            certificate: None,
            timeout: Duration::from_secs(5),
            settings: Settings::default(),
        };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "cert" => certificate = Some(PathBuf::from(&*value)),
                "key" => key = Some(PathBuf::from(&*value)),
                _ => config.take(&name, &value)?,
            }
        }
        config.certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("cert=FILE and key=FILE belong together")),
        };
        if config.certificate.is_some() && !has_tls {
            return Err(invalid("a certificate of the client needs TLS").hint("write artemiss://"));
        }
        if config.user.is_some() && config.password.is_none() {
            return Err(invalid("the URL names a user and no password")
                .hint("name the file of the password with ?password-file=FILE"));
        }
        Ok(config)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<()> {
        if self.settings.take(name, value)? {
            return Ok(());
        }
        match name {
            "ca" => self.ca = Some(value.into()),
            "password-file" => {
                let text = std::fs::read_to_string(value);
                let text = text.map_err(|error| {
                    invalid(format!("the password's file {value} cannot be read")).because(error)
                })?;
                self.password = Some(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            "timeout_ms" => {
                let number = value.parse().ok().filter(|number| *number > 0);
                let number = number.ok_or_else(|| invalid(format!("{name}={value} is no number above 0")))?;
                self.timeout = Duration::from_millis(number);
            }
            _ => {
                return Err(invalid(format!("an artemis URL has no setting {name}")).hint(
                    "ca, cert, key, password-file, timeout_ms, lease_ms, grace_ms and patience_ms are known",
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
        let config =
            config("artemiss://me:p%40ss@[::1]:7000?ca=/ca.pem&cert=/c&key=/k&lease_ms=1500").unwrap();
        assert_eq!((&*config.host, config.port), ("::1", 7000));
        assert_eq!((config.user.as_deref(), config.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(config.has_tls && config.ca.is_some() && config.certificate.is_some());
        assert_eq!(config.settings.lease.as_millis(), 1_500);
        let shown = format!("{config:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40"), "{shown}");
    }

    #[test]
    fn what_is_not_said_is_as_the_server_has_it() {
        for (url, port, has_tls) in [("artemis://h", 5672, false), ("artemiss://h/", 5671, true)] {
            let config = config(url).unwrap();
            assert_eq!((config.port, config.has_tls, config.user), (port, has_tls, None), "{url}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (url, named) in [
            ("artemis://h?lease=1", "lease"),
            ("artemis://h?timeout_ms=0", "timeout_ms"),
            ("artemis://h?lease_ms=x", "lease_ms"),
            ("artemis://h?password-file=/no/such", "/no/such"),
            ("artemis://h/orders", "no path"),
            ("artemiss://h?cert=/c", "belong together"),
            ("artemis://h?cert=/c&key=/k", "needs TLS"),
            ("artemis://s3cret@h", "no password"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }
}
