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
    pub(crate) hosts: String,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) mechanism: &'static str,
    pub(crate) has_tls: bool,
    pub(crate) ca: Option<String>,
    /// A certificate of the client's own, and its key.
    pub(crate) certificate: Option<String>,
    pub(crate) key: Option<String>,
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
        let host = host.ok_or_else(|| invalid("a kafka URL names a host: kafka://host:9092"))?;
        let mut config = Self {
            location: endpoint.to_string(),
            hosts: format!("{host}:{}", url.port().unwrap_or(9092)),
            user: Some(decoded(url.username())?).filter(|user| !user.is_empty()),
            password: url.password().map(decoded).transpose()?,
            mechanism: "SCRAM-SHA-256",
            has_tls: endpoint.scheme() == "kafkas",
            ca: None,
            certificate: None,
            key: None,
            replicas: -1,
            timeout: Duration::from_secs(10),
            settings: Settings::default(),
        };
        if !matches!(url.path(), "" | "/") {
            return Err(invalid("a kafka URL has no path: what it carries is named by channels"));
        }
        for (name, value) in url.query_pairs() {
            config.take(&name, &value)?;
        }
        // The library does not say which file it was.
        for file in [&config.ca, &config.certificate, &config.key].into_iter().flatten() {
            std::fs::File::open(file).map_err(|error| {
                Error::new(code::TLS_FAILED, format!("the file {file} cannot be read")).because(error)
            })?;
        }
        Ok(config)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<()> {
        if self.settings.take(name, value)? {
            return Ok(());
        }
        let bad = |what: &str| invalid(format!("{name}={value} is no {what}"));
        match name {
            "hosts" => {
                self.hosts.push(',');
                self.hosts.push_str(value);
            }
            "ca" => self.ca = Some(value.into()),
            "certificate" => self.certificate = Some(value.into()),
            "key" => self.key = Some(value.into()),
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
                        return Err(
                            bad("known mechanism").hint("scram-sha-256, scram-sha-512 and plain are known")
                        );
                    }
                }
            }
            "replicas" => {
                let replicas =
                    value.parse().ok().filter(|replicas| (1..=i32::from(i16::MAX)).contains(replicas));
                self.replicas = replicas.ok_or_else(|| bad("number of servers"))?;
            }
            "timeout_ms" => {
                let millis = value.parse().ok().filter(|millis| (100..=600_000).contains(millis));
                self.timeout =
                    Duration::from_millis(millis.ok_or_else(|| bad("time of 100 to 600,000 milliseconds"))?);
            }
            _ => {
                return Err(invalid(format!("a kafka URL has no setting {name}")).hint(
                    "hosts, ca, certificate, key, password-file, sasl, replicas, timeout_ms, lease_ms, grace_ms and \
                     patience_ms are known",
                ));
            }
        }
        Ok(())
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
            .set("bootstrap.servers", &self.hosts)
            .set("client.id", "tidegate")
            .set("security.protocol", protocol)
            // A topic that is gone is gone: what a server makes in its place forgets after a time. Those that write would have it
            // made, unless they say so.
            .set("allow.auto.create.topics", "false")
            // A server that is not heard of is given up as fast as a call is.
            .set("socket.timeout.ms", self.timeout.as_millis().max(1_000).to_string())
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            // How it says why a connection ended.
            .set("log.connection.close", "false");
        let given = [
            ("ssl.ca.location", &self.ca),
            ("ssl.certificate.location", &self.certificate),
            ("ssl.key.location", &self.key),
        ];
        for (name, value) in given {
            if let Some(value) = value.as_ref().filter(|_| self.has_tls) {
                client.set(name, value);
            }
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
            "kafkas://me:p%40ss@h1:7000?hosts=h2:7000,h3&ca=/dev/null&lease_ms=900&replicas=3&sasl=plain",
        );
        let config = config.unwrap();
        assert_eq!(config.hosts, "h1:7000,h2:7000,h3");
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
            ("kafka://h?lease=1", "lease"),
            ("kafka://h?timeout_ms=0", "timeout_ms"),
            ("kafka://h?replicas=0", "replicas"),
            ("kafka://h?sasl=gssapi", "sasl"),
            ("kafka://h/orders", "path"),
            ("kafka://", "host"),
            ("kafka://h?password-file=/no/such", "/no/such"),
        ] {
            let error = config(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{url}: {error}");
        }
    }
}
