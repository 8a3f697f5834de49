//! What a URL says.

use std::borrow::Cow;
use std::time::Duration;

use rdkafka::ClientConfig;
use tidegate_broker::access::{Access, Scheme};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

/// Where the servers are, and how to talk to them.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) access: Access,
    /// The first servers to ask, each with its port.
    pub(crate) servers: String,
    pub(crate) mechanism: &'static str,
    /// How many servers keep a channel that is made; the servers' own default else.
    pub(crate) replicas: i32,
}

/// Without the password.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("access", &self.access).finish_non_exhaustive()
    }
}

fn invalid(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(code::URL_INVALID, what)
}

impl Config {
    pub(crate) fn of(endpoint: &Endpoint) -> Result<Self> {
        let scheme = Scheme {
            names: ("kafka", "kafkas"),
            ports: (9092, 9092),
            timeout: Duration::from_secs(10),
            own: &["servers", "sasl", "replicas"],
        };
        let access = Access::of(endpoint, &scheme)?.without_path(&scheme)?;
        let others = access.own.get("servers").map_or_else(String::new, |others| format!(",{others}"));
        let servers = access.server() + &others;
        let mechanism = match access.own.get("sasl").map(String::as_str) {
            None | Some("scram-sha-256") => "SCRAM-SHA-256",
            Some("scram-sha-512") => "SCRAM-SHA-512",
            Some("plain") => "PLAIN",
            Some(other) => {
                return Err(invalid(format!("sasl={other} is no known mechanism"))
                    .hint("scram-sha-256, scram-sha-512 and plain are known"));
            }
        };
        let many = |_| invalid("replicas are more than a topic of Kafka can have");
        let replicas = match access.number("replicas")? {
            None => -1,
            Some(replicas) => i16::try_from(replicas).map_err(many)?.into(),
        };
        // The library does not say which file it was.
        let own = access.certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        for file in access.ca.iter().chain(own) {
            std::fs::File::open(file).map_err(|error| {
                let text = format!("the certificate or key {} cannot be read", file.display());
                Error::new(code::TLS_FAILED, text).because(error)
            })?;
        }
        Ok(Self { access, servers, mechanism, replicas })
    }

    /// How long the library is told to wait for an answer: it takes no more than five minutes.
    pub(crate) fn answer_max(&self) -> Duration {
        self.access.timeout.min(Duration::from_secs(300))
    }

    /// What every client is given.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        let protocol = match (self.access.user.is_some(), self.access.has_tls) {
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
        if let Some(ca) = self.access.ca.as_ref().filter(|_| self.access.has_tls) {
            client.set("ssl.ca.location", ca.to_string_lossy());
        }
        if let Some((certificate, key)) = &self.access.certificate {
            client
                .set("ssl.certificate.location", certificate.to_string_lossy())
                .set("ssl.key.location", key.to_string_lossy());
        }
        if let Some(user) = &self.access.user {
            client.set("sasl.mechanism", self.mechanism).set("sasl.username", user);
            client.set("sasl.password", self.access.password.as_deref().unwrap_or_default());
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
        assert_eq!(
            (config.access.user.as_deref(), config.access.password.as_deref()),
            (Some("me"), Some("p@ss"))
        );
        assert_eq!(
            (config.replicas, config.access.settings.lease.as_millis(), config.mechanism),
            (3, 900, "PLAIN")
        );
        let client = config.client();
        assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(client.get("ssl.ca.location"), Some("/dev/null"));
        assert!(!format!("{config:?}").contains("p@ss") && !format!("{config:?}").contains("p%40"));
    }

    #[test]
    fn a_user_is_asked_for_by_scram_and_nobody_by_nothing() {
        let client = config("kafka://me:secret@[::1]").unwrap().client();
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
