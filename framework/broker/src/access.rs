//! Where a server is, and who asks it: what the URLs of brokers have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::pace::Pace;
use crate::settings::Settings;
use tidegate_core::endpoint::Endpoint;
use tidegate_core::error::{Error, Result, code};

/// Longer than any password, in bytes.
const SECRET_MAX: u64 = 64 << 10;

/// What may stand in each URL.
const KNOWN: [&str; 8] =
    ["ca", "cert", "key", "password-file", "timeout_ms", "lease_ms", "grace_ms", "patience_ms"];

/// What the URLs of one kind of server are like.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// The scheme without TLS, and that with it.
    pub names: (&'static str, &'static str),
    /// The ports, if none is named.
    pub ports: (u16, u16),
    /// How long an answer may take, if nothing is said about it.
    pub timeout: Duration,
    /// The names of the adapter's own settings.
    pub own: &'static [&'static str],
}

/// Where a server is, who asks it, and how long that may take.
#[derive(Clone)]
#[non_exhaustive]
pub struct Access {
    /// The URL, for people; without secrets.
    pub location: String,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path of the URL, without the slash before it.
    pub path: String,
    /// Who asks.
    pub user: Option<String>,
    /// Their password.
    pub password: Option<String>,
    /// Whether the connection is encrypted.
    pub has_tls: bool,
    /// The certificate of the server's authority.
    pub ca: Option<PathBuf>,
    /// The client's own certificate, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long other things take at most.
    pub settings: Settings,
    /// Settings that are the adapter's own, as they stand in the URL.
    pub own: BTreeMap<&'static str, String>,
    /// The scheme of such a server without TLS.
    plain: &'static str,
    /// How often connections are asked for.
    pace: Arc<Pace>,
}

/// Without the password.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("location", &self.location).finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(code::URL_INVALID, what)
}

fn number(name: &str, value: &str) -> Result<u64> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| invalid(format!("{name}={value} is no number above 0")))
}

/// A file that has no more than a secret in it.
fn read_short(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(SECRET_MAX).read_to_string(&mut text)?;
    if text.len() as u64 == SECRET_MAX {
        return Err(std::io::Error::other("it is longer than a password can be"));
    }
    Ok(text)
}

fn decoded(text: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(String::from).map_err(|_| invalid("the user, the password or the path is no UTF-8"))
}

impl Access {
    /// Reads a URL.
    ///
    /// # Errors
    /// `url-invalid` if something cannot be read, is no setting, stands there twice, or lacks what belongs to it.
    pub fn of(endpoint: &Endpoint, scheme: &Scheme) -> Result<Self> {
        let url = endpoint.url()?;
        let (plain, tls) = scheme.names;
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| {
            invalid(format!("a URL of {plain} names a host: {plain}://host:{}", scheme.ports.0))
        })?;
        let has_tls = endpoint.scheme() == tls;
        let mut access = Self {
            location: endpoint.to_string(),
            // An address of IPv6 stands in brackets in a URL.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if has_tls { scheme.ports.1 } else { scheme.ports.0 }),
            path: decoded(url.path().trim_start_matches('/'))?,
            user: Some(decoded(url.username())?).filter(|user| !user.is_empty()),
            password: url.password().map(decoded).transpose()?,
            has_tls,
            ca: None,
            certificate: None,
            timeout: scheme.timeout,
            settings: Settings::default(),
            own: BTreeMap::new(),
            plain,
            pace: Arc::default(),
        };
        let (mut certificate, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "cert" => certificate = Some(PathBuf::from(&*value)),
                "key" => key = Some(PathBuf::from(&*value)),
                _ if access.take(&name, &value)? => {}
                _ => {
                    let known = scheme.own.iter().find(|known| **known == name).ok_or_else(|| {
                        invalid(format!("a URL of {plain} has no setting {name}"))
                            .hint(format!("known are {}", [scheme.own, &KNOWN].concat().join(", ")))
                    })?;
                    if access.own.insert(known, value.into_owned()).is_some() {
                        return Err(invalid(format!("the setting {name} stands there twice")));
                    }
                }
            }
        }
        access.certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("cert=FILE and key=FILE belong together")),
        };
        if access.certificate.is_some() && !has_tls {
            return Err(invalid("a certificate of the client needs TLS").hint(format!("write {tls}://")));
        }
        if access.user.is_some() && access.password.is_none() {
            return Err(invalid("the URL names a user and no password")
                .hint("name the file of the password with ?password-file=FILE"));
        }
        Ok(access)
    }

    /// The same, where a path says nothing.
    ///
    /// # Errors
    /// `url-invalid` if there is one.
    pub fn without_path(self, scheme: &Scheme) -> Result<Self> {
        if self.path.is_empty() {
            return Ok(self);
        }
        Err(invalid(format!("a URL of {} has no path", scheme.names.0))
            .hint("channels are named where they are used"))
    }

    /// The server as `HOST:PORT`.
    pub fn server(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects, when it is time to ([`Pace::attempt`]).
    ///
    /// # Errors
    /// That of this attempt, or of another one that was waited for.
    pub async fn attempt<T>(&self, connect: impl Future<Output = Result<T>>) -> Result<T> {
        // Large, and not to be part of everything that asks for a connection.
        let connect = Box::pin(connect);
        self.pace.attempt(async { connect.await.map_err(|error| self.explain(error)) }).await
    }

    /// A server without TLS may say nothing to who begins with that, or something else.
    fn explain(&self, error: Error) -> Error {
        let mut has_none = error.code() == code::UNREACHABLE;
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            has_none |= inner.to_string().contains("InvalidContentType");
            cause = inner.source();
        }
        if self.has_tls && has_none {
            return error.hint(format!("a server without TLS is {}://", self.plain));
        }
        error
    }

    /// A setting of the adapter's own that is a number.
    ///
    /// # Errors
    /// `url-invalid` if it is none, or 0.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        self.own.get(name).map(|value| number(name, value)).transpose()
    }

    /// What is to be known of every connection, as sentences: whether whoever listens on the way can read everything.
    pub fn notes(&self) -> Vec<String> {
        let is_here = self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let text = "the connection is not encrypted, and the server is another machine: use TLS, with an s behind the scheme";
        (!self.has_tls && !is_here).then(|| text.to_owned()).into_iter().collect()
    }

    fn take(&mut self, name: &str, value: &str) -> Result<bool> {
        match name {
            "ca" => self.ca = Some(value.into()),
            "password-file" => {
                let text = read_short(value).map_err(|error| {
                    invalid(format!("the password's file {value} cannot be read")).because(error)
                })?;
                self.password = Some(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            "timeout_ms" => self.timeout = Duration::from_millis(number(name, value)?),
            _ => return self.settings.take(name, value),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEME: Scheme = Scheme {
        names: ("amqp", "amqps"),
        ports: (5672, 5671),
        timeout: Duration::from_secs(5),
        own: &["own"],
    };

    fn access(url: &str) -> Result<Access> {
        Access::of(&Endpoint::parse(url).unwrap(), &SCHEME)
    }

    #[test]
    fn a_url_is_taken_apart_and_its_password_is_not_shown() {
        let access =
            access("amqps://me:p%40ss@[::1]:7000/a%2Fb?ca=/ca.pem&cert=/c&key=/k&lease_ms=1500&own=1")
                .unwrap();
        assert_eq!((&*access.host, access.port, &*access.path), ("::1", 7000, "a/b"));
        assert_eq!((access.server(), access.number("own").unwrap()), ("[::1]:7000".to_owned(), Some(1)));
        assert_eq!((access.user.as_deref(), access.password.as_deref()), (Some("me"), Some("p@ss")));
        assert!(access.has_tls && access.ca.is_some() && access.certificate.is_some());
        assert_eq!(access.settings.lease.as_millis(), 1_500);
        assert_eq!(access.own.get("own").map(String::as_str), Some("1"));
        let shown = format!("{access:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40"), "{shown}");
    }

    #[test]
    fn a_server_that_has_no_tls_is_thought_of() {
        let secure = access("amqps://h").unwrap();
        let said = |code, cause: &str| secure.explain(Error::new(code, "x").because(cause.to_owned()));
        let named = Some("a server without TLS is amqp://");
        assert_eq!(
            said(code::TLS_FAILED, "received corrupt message of type InvalidContentType").hint_text(),
            named
        );
        assert_eq!(said(code::UNREACHABLE, "timed out").hint_text(), named);
        assert_eq!(said(code::TLS_FAILED, "invalid peer certificate: UnknownIssuer").hint_text(), None);
        let open = access("amqp://h").unwrap();
        assert_eq!(open.explain(Error::new(code::UNREACHABLE, "x")).hint_text(), None);
    }

    #[test]
    fn a_password_is_no_endless_file() {
        let error = access("amqp://me@h?password-file=/dev/zero").unwrap_err();
        assert!(error.code() == code::URL_INVALID && error.message().contains("/dev/zero"), "{error}");
    }

    #[test]
    fn what_is_not_said_is_as_everywhere() {
        for (url, port, is_unsafe) in [
            ("amqp://h", 5672, true),
            ("amqps://h/", 5671, false),
            ("amqp://localhost", 5672, false),
            ("amqp://127.0.0.2:1", 1, false),
            ("amqp://[::1]", 5672, false),
        ] {
            let access = access(url).unwrap();
            assert_eq!((access.port, !access.notes().is_empty()), (port, is_unsafe), "{url}");
            assert_eq!((access.user, access.password, &*access.path), (None, None, ""), "{url}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (url, named) in [
            ("amqp://", "a URL of amqp names a host: amqp://host:5672"),
            ("amqp://h?lease=1", "a URL of amqp has no setting lease"),
            ("amqp://h?own=1&own=2", "the setting own stands there twice"),
            ("amqp://h?timeout_ms=0", "timeout_ms=0 is no number above 0"),
            ("amqp://h?lease_ms=x", "lease_ms"),
            ("amqp://h?password-file=/no/such", "/no/such"),
            ("amqps://h?cert=/c", "belong together"),
            ("amqp://h?cert=/c&key=/k", "needs TLS"),
            ("amqp://s3cret@h", "no password"),
        ] {
            let error = access(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        let error = access("amqp://h/orders").unwrap().without_path(&SCHEME).unwrap_err();
        assert_eq!(error.message(), "a URL of amqp has no path");
        assert!(access("amqp://h/").unwrap().without_path(&SCHEME).is_ok());
    }
}
