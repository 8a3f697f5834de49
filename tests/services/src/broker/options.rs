//! What a test may ask of its broker.

/// How a broker is set up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// Settings in the broker's own words; they replace ours of the same name. Redis: as in `redis.conf`. RabbitMQ: as in
    /// `rabbitmq.conf`. NATS: as in its configuration file, a block as the value `{ … }`. Kafka: `server.properties`.
    /// Artemis: broker properties. ActiveMQ: attributes of `<broker>`,
    /// `statistics` for its plugin of that name, and `transformer` of its connector for AMQP.
    pub settings: Vec<(String, String)>,
    /// Further arguments of the program; those of Kafka, Artemis and ActiveMQ are of the virtual machine.
    pub arguments: Vec<String>,
    /// The password of the user in the URL, asked for from then on.
    pub password: Option<String>,
    /// TLS instead of plain text at the port of the URL, with a certificate for `localhost` and 127.0.0.1 by an authority
    /// of the server's own.
    pub tls: bool,
    /// The port at which the server tells its clients to find it, where it tells them one: that of a network before it. Kafka
    /// alone.
    pub advertised_port: Option<u16>,
}

impl Options {
    /// Adds a setting in the broker's own words.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// Adds an argument of the program, or of the virtual machine that runs it.
    #[must_use]
    pub fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Asks for a password.
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Tells clients to find it at another port.
    #[must_use]
    pub fn with_advertised_port(mut self, port: u16) -> Self {
        self.advertised_port = Some(port);
        self
    }

    /// Speaks TLS.
    #[must_use]
    pub fn with_tls(mut self) -> Self {
        self.tls = true;
        self
    }
}
