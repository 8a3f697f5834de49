//! What a URL says.

use std::borrow::Cow;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rdkafka::ClientConfig;
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result, Settings};

/// Where the servers are, and how to talk to them.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) location: String,
    /// The first servers to ask, each with its port.
    pub(crate) servers: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) mechanism: &'static str,
    pub(crate) has_tls: bool,
    pub(crate) ca: Option<String>,
    /// A certificate of the client's own, and its key.
    pub(crate) certificate: Option<(String, String)>,
    /// How many servers keep a channel that is made; the servers' own default else.
    pub(crate) replicas: i32,
    pub(crate) timeout: Duration,
    pub(crate) settings: Settings,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("location", &self.location).finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
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
        let host = host.ok_or_else(|| invalid("a URL of kafka names a host: kafka://host:9092"))?;
        let mut config = Self {
            location: endpoint.to_string(),
            servers: format!("{host}:{}", url.port().unwrap_or(9092)),
            user: Some(decoded(url.username())?).filter(|user| !user.is_empty()),
            password: url.password().map(decoded).transpose()?,
            mechanism: "SCRAM-SHA-256",
            has_tls: endpoint.scheme() == "kafkas",
            ca: None,
            certificate: None,
            replicas: -1,
            timeout: Duration::from_secs(10),
            settings: Settings::default(),
        };
        if !matches!(url.path(), "" | "/") {
            return Err(invalid("a URL of kafka has no path").hint("channels are named where they are used"));
        }
        let (mut certificate, mut key) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "cert" => certificate = Some(value.into_owned()),
                "key" => key = Some(value.into_owned()),
                _ => config.take(&name, &value)?,
            }
        }
        config.certificate = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(invalid("cert=FILE and key=FILE belong together")),
        };
        if config.certificate.is_some() && !config.has_tls {
            return Err(invalid("a certificate of the client needs TLS").hint("write kafkas://"));
        }
        // The library does not say which file it was.
        let own = config.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        for file in config.ca.iter().chain(own) {
            std::fs::File::open(file).map_err(|error| {
                let text = format!("the certificate or key {file} cannot be read");
                Error::new(code::TLS_FAILED, text).because(error)
            })?;
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
            "servers" => {
                self.servers.push(',');
                self.servers.push_str(value);
            }
            "ca" => self.ca = Some(value.into()),
            "password-file" => {
                let text = std::fs::read_to_string(value);
                let text = text.map_err(|error| {
                    invalid(format!("the password's file {value} cannot be read")).because(error)
                })?;
                self.password = Some(text.trim_end_matches(['\n', '\r']).to_owned());
            }
            "sasl" => {
                self.mechanism = match value {
                    "scram-sha-256" => "SCRAM-SHA-256",
                    "scram-sha-512" => "SCRAM-SHA-512",
                    "plain" => "PLAIN",
                    _ => {
                        return Err(invalid(format!("{name}={value} is no known mechanism"))
                            .hint("scram-sha-256, scram-sha-512 and plain are known"));
                    }
                }
            }
            "replicas" => {
                let replicas = i16::try_from(number()?);
                let many = |_| invalid(format!("{name}={value} is more than a topic of Kafka can have"));
                self.replicas = replicas.map_err(many)?.into();
            }
            "timeout_ms" => self.timeout = Duration::from_millis(number()?),
            _ => {
                return Err(invalid(format!("a URL of kafka has no setting {name}")).hint(
                    "known are servers, ca, cert, key, password-file, sasl, replicas, timeout_ms, lease_ms, grace_ms, \
                     patience_ms",
                ));
            }
        }
        Ok(())
    }

    /// How long the library is told to wait for an answer: it takes no more than five minutes.
    pub(crate) fn answer_max(&self) -> Duration {
        self.timeout.min(Duration::from_secs(300))
    }

    /// What every client is given.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        let protocol = match (self.user.is_some(), self.has_tls) {
            (false, false) => "PLAINTEXT",
            (false, true) => "SSL",
            (true, false) => "SASL_PLAINTEXT",
            (true, true) => "SASL_SSL",
        };
        client
            .set("bootstrap.servers", &self.servers)
            .set("client.id", "tidegate")
            .set("security.protocol", protocol)
            // A topic that is gone is gone: what a server makes in its place forgets after a time. Those that write would have it
            // made, unless they say so.
            .set("allow.auto.create.topics", "false")
            // A server that is not heard of is given up as fast as a call is.
            .set("socket.timeout.ms", self.answer_max().as_millis().max(1_000).to_string())
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            // How it says why a connection ended.
            .set("log.connection.close", "false");
        if let Some(ca) = self.ca.as_ref().filter(|_| self.has_tls) {
            client.set("ssl.ca.location", ca);
        }
        if let Some((certificate, key)) = &self.certificate {
            client.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
        }
        if let Some(user) = &self.user {
            client.set("sasl.mechanism", self.mechanism).set("sasl.username", user);
            client.set("sasl.password", self.password.as_deref().unwrap_or_default());
        }
        client
    }

    /// What a client is given that reads from places which it is told.
    pub(crate) fn reader(&self) -> ClientConfig {
        let mut client = self.client();
        client
            // It joins no group; the library wants the name.
            .set("group.id", "tidegate")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.max.bytes", "16777216")
            // A lane that comes to those that are read waits so long for its first messages.
            .set("fetch.wait.max.ms", "100");
        client
    }

    /// What a client is given that writes.
    pub(crate) fn writer(&self) -> ClientConfig {
        let mut client = self.client();
        client
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("retry.backoff.ms", "50")
            // How long is decided by whoever waits, for all that was sent at once.
            .set("message.timeout.ms", "0");
        client
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
        let config = config(
            "kafkas://me:p%40ss@h1:7000?servers=h2:7000,h3&ca=/dev/null&lease_ms=900&replicas=3&sasl=plain",
        );
        let config = config.unwrap();
        assert_eq!(config.servers, "h1:7000,h2:7000,h3");
        assert_eq!((config.user.as_deref(), config.password.as_deref()), (Some("me"), Some("p@ss")));
        assert_eq!((config.replicas, config.settings.lease.as_millis(), config.mechanism), (3, 900, "PLAIN"));
        let client = config.client();
        assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(client.get("ssl.ca.location"), Some("/dev/null"));
        assert!(!format!("{config:?}").contains("p@ss") && !format!("{config:?}").contains("p%40"));
    }

    #[test]
    fn a_user_is_asked_for_by_scram_and_nobody_by_nothing() {
        let client = config("kafka://me@[::1]").unwrap().client();
        assert_eq!(client.get("bootstrap.servers"), Some("[::1]:9092"));
        assert_eq!(
            (client.get("security.protocol"), client.get("sasl.mechanism")),
            (Some("SASL_PLAINTEXT"), Some("SCRAM-SHA-256"))
        );
        assert_eq!(config("kafkas://h").unwrap().client().get("security.protocol"), Some("SSL"));
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (url, named) in [
            ("kafka://h?lease=1", "a URL of kafka has no setting lease"),
            ("kafka://h?hosts=h2", "a URL of kafka has no setting hosts"),
            ("kafkas://h?certificate=/c", "a URL of kafka has no setting certificate"),
            ("kafka://h?timeout_ms=0", "timeout_ms=0 is no number above 0"),
            ("kafka://h?replicas=0", "replicas=0 is no number above 0"),
            ("kafka://h?replicas=40000", "replicas"),
            ("kafkas://h?cert=/c", "cert=FILE and key=FILE belong together"),
            ("kafka://h?cert=/c&key=/k", "a certificate of the client needs TLS"),
            ("kafka://h?sasl=gssapi", "sasl"),
            ("kafka://h/orders", "a URL of kafka has no path"),
            ("kafka://", "a URL of kafka names a host: kafka://host:9092"),
            ("kafka://h?password-file=/no/such", "/no/such"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
        }
    }

    #[test]
    fn a_client_has_the_certificate_that_it_is_given() {
        let client = config("kafkas://h?cert=/dev/null&key=/dev/zero").unwrap().client();
        assert_eq!(client.get("ssl.certificate.location"), Some("/dev/null"));
        assert_eq!(client.get("ssl.key.location"), Some("/dev/zero"));
        let error = config("kafkas://h?cert=/no/such&key=/dev/null").unwrap_err();
        assert_eq!(error.code(), code::TLS_FAILED);
        assert_eq!(error.message(), "the certificate or key /no/such cannot be read");
    }

    /// The library has bounds of its own.
    #[test]
    fn an_answer_may_take_any_time() {
        for millis in ["1", "600000", "18446744073709551615"] {
            let endpoint = Endpoint::parse(&format!("kafka://h?timeout_ms={millis}")).unwrap();
            crate::open_broker(&endpoint).map(drop).unwrap();
        }
    }
}
