//! Where a server is, who asks and how safely: everything a `postgres://` URL says.
//!
//! One [`Settings`] serves both kinds of connections, the ordinary ones and the one that reads the stream of
//! changes, so that they can never differ in their safety.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};
use url::Url;

const PORT: u16 = 5432;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The parameters a URL may carry, for the message about one that is not among them.
const PARAMETERS: &str = "sslmode, sslrootcert, sslcert, sslkey, host, port, user, password, password-file, dbname, \
                          application_name, connect_timeout, options";

/// How to reach one database of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Settings {
    /// The server.
    pub(crate) host: Host,
    /// The role.
    pub(crate) user: String,
    /// How the role proves itself.
    pub(crate) password: Password,
    /// The database; a stream of changes belongs to one.
    pub(crate) database: String,
    /// How far the connection is protected.
    pub(crate) tls: Tls,
    /// Certificates of those who may vouch for the server, in PEM; the system's own when absent.
    pub(crate) root_certificate: Option<PathBuf>,
    /// A certificate and its key that identify us, in PEM.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    /// What the server shows in `pg_stat_activity`.
    pub(crate) application_name: String,
    /// How long reaching the server and proving the role may take together.
    pub(crate) connect_timeout: Duration,
    /// Command-line options for the server process, such as `-c search_path=app`.
    pub(crate) options: Option<String>,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A name or an address, and a port.
    Tcp(String, u16),
    /// The folder of a local socket, and the port in its file name.
    Socket(PathBuf, u16),
}

/// How far a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Plain text.
    Disable,
    /// Encrypted, the server not identified: whoever can stand between can read.
    Require,
    /// Encrypted, and the certificate was issued by somebody trusted, for whatever name.
    VerifyCa,
    /// Encrypted, and the certificate was issued by somebody trusted for this very name.
    VerifyFull,
}

/// How a role proves itself.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Password {
    /// It does not: a trusted address, the owner of a socket or a client certificate.
    Absent,
    /// With these words.
    Plain(String),
    /// With the words in this file, read again for every connection, so that they may be rotated.
    File(PathBuf),
}

impl Settings {
    /// Reads a URL, and the variables `PGPASSWORD` and `PGUSER` for what it leaves out.
    ///
    /// # Errors
    /// `url-invalid` when the URL does not say where to go or asks for what is unknown; `config-invalid` when
    /// its password file cannot be read. No message repeats the URL, since it may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Like [`Settings::parse`], with the variables given by the caller.
    ///
    /// # Errors
    /// As [`Settings::parse`].
    pub(crate) fn parse_with(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| invalid("this is not a URL").because(error))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid(format!("the scheme {} is not postgres", url.scheme())));
        }
        let parameters = Parameters::read(url.query().unwrap_or_default())?;
        let host = host(&url, &parameters)?;
        let user = match (url.username(), parameters.get("user")) {
            ("", Some(user)) => user.to_owned(),
            ("", None) => variable("PGUSER")
                .or_else(|| variable("USER"))
                .ok_or_else(|| invalid("no user is named").hint("write postgres://user@host/database"))?,
            (user, _) => decode(user)?,
        };
        let database = match decode(url.path().trim_start_matches('/'))? {
            name if !name.is_empty() => name,
            _ => parameters.get("dbname").unwrap_or(&user).to_owned(),
        };
        let tls = tls(&host, &parameters)?;
        Ok(Self {
            password: password(&url, &parameters, &host, &variable)?,
            root_certificate: parameters
                .get("sslrootcert")
                .filter(|path| *path != "system")
                .map(PathBuf::from),
            client_certificate: client_certificate(&parameters)?,
            application_name: parameters.get("application_name").unwrap_or("tidegate").to_owned(),
            connect_timeout: match parameters.get("connect_timeout") {
                None => CONNECT_TIMEOUT,
                Some(text) => text
                    .parse()
                    .ok()
                    .filter(|seconds| *seconds > 0)
                    .map(Duration::from_secs)
                    .ok_or_else(|| invalid("connect_timeout is a number of seconds above zero"))?,
            },
            options: parameters.get("options").map(str::to_owned),
            host,
            user,
            database,
            tls,
        })
    }

    /// The name a certificate has to be valid for.
    pub(crate) fn server_name(&self) -> &str {
        match &self.host {
            Host::Tcp(name, _) => name,
            Host::Socket(..) => "localhost",
        }
    }
}

/// The URL without what is secret.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@{}/{}", self.user, self.host, self.database)
    }
}

impl Host {
    /// Whether the connection cannot leave this machine.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Socket(..) => true,
            Self::Tcp(name, _) => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// The file of a local socket.
    pub(crate) fn socket_file(folder: &Path, port: u16) -> PathBuf {
        folder.join(format!(".s.PGSQL.{port}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp(name, port) => write!(f, "{name}:{port}"),
            Self::Socket(folder, port) => write!(f, "{}:{port}", folder.display()),
        }
    }
}

impl Password {
    /// The words, if there are any.
    pub(crate) fn read(&self) -> Result<Option<String>> {
        match self {
            Self::Absent => Ok(None),
            Self::Plain(words) => Ok(Some(words.clone())),
            Self::File(path) => match std::fs::read_to_string(path) {
                // Editors end a file with a line break; no password ends with one.
                Ok(words) => Ok(Some(words.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => Err(Error::new(code::CONFIG_INVALID, "the password file cannot be read")
                    .with("file", path.display())
                    .because(error)),
            },
        }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("Absent"),
            Self::Plain(_) => f.write_str("Plain(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// The decoded parameters after the question mark.
///
/// Not the `url` crate's own reading, which turns `+` into a space as forms do; libpq does not.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(query: &str) -> Result<Self> {
        let mut parameters = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name)?;
            if !PARAMETERS.split(", ").any(|known| known == name) {
                return Err(invalid(format!("the parameter {name} is unknown"))
                    .hint(format!("known are {PARAMETERS}")));
            }
            parameters.push((name, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// The last of this name wins, so that a parameter can be appended to a URL one was given.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn host(url: &Url, parameters: &Parameters) -> Result<Host> {
    let name = match (parameters.get("host"), url.host_str()) {
        (Some(name), _) => name.to_owned(),
        (None, Some(name)) if !name.is_empty() => decode(name)?,
        (None, _) => "localhost".to_owned(),
    };
    let port = match (parameters.get("port"), url.port()) {
        (Some(text), _) => text.parse().map_err(|_| invalid("the port is not a number up to 65535"))?,
        (None, port) => port.unwrap_or(PORT),
    };
    if name.contains(',') {
        return Err(invalid("several hosts are named").hint("name one: a migration reads one server"));
    }
    if name.starts_with('/') {
        return Ok(Host::Socket(PathBuf::from(name), port));
    }
    Ok(Host::Tcp(name.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

fn tls(host: &Host, parameters: &Parameters) -> Result<Tls> {
    let asked = match parameters.get("sslmode") {
        None if host.is_local() => Tls::Disable,
        None => Tls::VerifyFull,
        Some("disable") => Tls::Disable,
        Some("require") => Tls::Require,
        Some("verify-ca") => Tls::VerifyCa,
        Some("verify-full") => Tls::VerifyFull,
        Some("allow" | "prefer") => {
            return Err(invalid("sslmode allow and prefer fall back to plain text without a word")
                .hint("write disable, require, verify-ca or verify-full"));
        }
        Some(other) => {
            return Err(invalid(format!("sslmode {other} is unknown"))
                .hint("write disable, require, verify-ca or verify-full"));
        }
    };
    // The server itself never speaks TLS over a socket, so any other mode would only fail later.
    if matches!(host, Host::Socket(..)) && asked != Tls::Disable {
        return Err(invalid("a local socket has no TLS").hint("leave sslmode out, or name a host"));
    }
    Ok(asked)
}

fn password(
    url: &Url,
    parameters: &Parameters,
    host: &Host,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Password> {
    if let Some(path) = parameters.get("password-file") {
        let file = Password::File(PathBuf::from(path));
        // Read now as well, so that a wrong path is named at once and not hours later at a reconnect.
        file.read()?;
        return Ok(file);
    }
    let plain = match url.password() {
        Some(words) => Some(decode(words)?),
        None => parameters.get("password").map(str::to_owned),
    };
    match plain {
        Some(words) => {
            if !host.is_local() {
                tracing::warn!(%host, "a password stands in the URL, where process lists and logs may show it");
            }
            Ok(Password::Plain(words))
        }
        None => Ok(variable("PGPASSWORD").map_or(Password::Absent, Password::Plain)),
    }
}

fn client_certificate(parameters: &Parameters) -> Result<Option<(PathBuf, PathBuf)>> {
    match (parameters.get("sslcert"), parameters.get("sslkey")) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some((certificate.into(), key.into()))),
        _ => Err(invalid("sslcert and sslkey go together")),
    }
}

fn decode(text: &str) -> Result<String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => Err(invalid("a part of it does not decode to text")),
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(code::URL_INVALID, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Settings> {
        Settings::parse_with(url, |name| (name == "USER").then(|| "me".to_owned()))
    }

    /// One line a case: the URL, and what it means as `host|user|password|database|tls`.
    #[test]
    fn a_url_means_one_thing() {
        for (url, expect) in [
            ("postgres://a:b@db:1/c", "db:1|a|b|c|VerifyFull"),
            ("postgresql://a@db", "db:5432|a||a|VerifyFull"),
            ("postgres://a%40x:p%3Aq%2F%25@db/n%20m", "db:5432|a@x|p:q/%|n m|VerifyFull"),
            ("postgres://a:p+q@localhost/c", "localhost:5432|a|p+q|c|Disable"),
            ("postgres://a@[::1]:7/c", "[::1]:7|a||c|Disable"),
            ("postgres://a@[2001:db8::1]/c", "[2001:db8::1]:5432|a||c|VerifyFull"),
            ("postgres://a@127.8.9.1/c?sslmode=require", "127.8.9.1:5432|a||c|Require"),
            ("postgres://a@db/c?sslmode=disable&sslmode=verify-ca", "db:5432|a||c|VerifyCa"),
            ("postgres:///c?host=/run/pg&port=6", "/run/pg:6|me||c|Disable"),
            ("postgres://a@%2Frun%2Fpg/c", "/run/pg:5432|a||c|Disable"),
            ("postgres://localhost?user=u&password=p%26q+r&dbname=d", "localhost:5432|u|p&q+r|d|Disable"),
        ] {
            let settings = parse(url).expect(url);
            let password = settings.password.read().unwrap().unwrap_or_default();
            let seen = format!(
                "{}|{}|{password}|{}|{:?}",
                settings.host, settings.user, settings.database, settings.tls
            );
            assert_eq!(seen, expect, "{url}");
            assert_eq!(settings.application_name, "tidegate");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_by_name_and_never_repeated() {
        for (url, expect) in [
            ("not a url s3cret", "not a URL"),
            ("mysql://a:s3cret@h/d", "mysql is not postgres"),
            ("postgres://a:s3cret@h/d?sslmode=prefer", "fall back to plain text"),
            ("postgres://a:s3cret@h/d?sslmode=x", "sslmode x is unknown"),
            ("postgres://a:s3cret@h/d?slmode=require", "parameter slmode is unknown"),
            ("postgres://a:s3cret@h/d?connect_timeout=0", "above zero"),
            ("postgres://a:s3cret@h/d?port=70000", "65535"),
            ("postgres://a:s3cret@h/d?host=a,b", "several hosts"),
            ("postgres://a:s3cret%00@h/d", "does not decode"),
            ("postgres://a:s3cret@h/d?sslcert=x", "go together"),
            ("postgres:///d?host=/run&sslmode=require&password=s3cret", "a local socket has no TLS"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.code(), code::URL_INVALID, "{url}");
            assert!(error.to_string().contains(expect), "{url}: {error}");
            assert!(!format!("{error:?}{:?}", error.hint_text()).contains("s3cret"), "{url}: {error:?}");
        }
        assert!(Settings::parse_with("postgres://h/d", |_| None).is_err(), "no user anywhere");
    }

    #[test]
    fn a_password_comes_from_the_file_the_url_or_the_environment_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pass word");
        std::fs::write(&file, "s3cret \n").unwrap();
        let url = format!("postgres://a:other@h/d?password-file={}", file.display());
        let settings = parse(&url).unwrap();
        assert_eq!(settings.password.read().unwrap().as_deref(), Some("s3cret "));
        std::fs::write(&file, "rotated").unwrap();
        assert_eq!(settings.password.read().unwrap().as_deref(), Some("rotated"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(parse(&url).unwrap_err().code(), code::CONFIG_INVALID);

        let settings = Settings::parse_with("postgres://a@h/d", |name| {
            (name == "PGPASSWORD").then(|| "s3cret".to_owned())
        })
        .unwrap();
        assert_eq!(settings.password, Password::Plain("s3cret".to_owned()));
        assert!(!format!("{settings:?} {settings:#?} {settings}").contains("s3cret"));
    }
}
