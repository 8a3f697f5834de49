//! What a test may ask of its PostgreSQL server.

/// How a server is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Settings as in `postgresql.conf`; the last one of a name wins, also over our own.
    pub settings: Vec<(String, String)>,
    /// The superuser's password; connections over TCP then need it (SCRAM).
    pub password: Option<String>,
    /// Whether the server speaks TLS.
    pub tls: Tls,
    /// Whether the server has a system identifier of its own (one second longer); else all have the template's.
    pub fresh_identity: bool,
}

/// TLS of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tls {
    /// Not spoken.
    Off,
    /// Spoken if the client wants it.
    Offered,
    /// Connections over TCP without it are refused.
    Required,
}

impl Default for Options {
    fn default() -> Self {
        Options { settings: Vec::new(), password: None, tls: Tls::Off, fresh_identity: false }
    }
}

impl Options {
    /// Adds a setting as in `postgresql.conf`.
    #[must_use]
    pub fn with_setting(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// Asks for a password over TCP (SCRAM).
    #[must_use]
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Sets TLS, with a certificate for `localhost` and 127.0.0.1 by an authority of the server's own.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Really runs `initdb`, for tests that tell servers apart.
    #[must_use]
    pub fn with_fresh_identity(mut self) -> Self {
        self.fresh_identity = true;
        self
    }

    /// The lines of `postgresql.conf` that stand in every server's file.
    pub(crate) fn configuration(&self, port: u16, socket_folder: &str) -> String {
        let own = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", port.to_string()),
            ("unix_socket_directories", socket_folder.to_owned()),
            ("wal_level", "logical".to_owned()),
            ("max_wal_senders", "30".to_owned()),
            ("max_replication_slots", "30".to_owned()),
            ("max_connections", "200".to_owned()),
            ("shared_buffers", "128MB".to_owned()),
            ("fsync", "on".to_owned()),
            ("timezone", "UTC".to_owned()),
            ("log_timezone", "UTC".to_owned()),
        ];
        let tls = if self.tls == Tls::Off { &[][..] } else { &[("ssl", "on")] };
        let own = own.iter().map(|(name, value)| (*name, value.as_str())).chain(tls.iter().copied());
        let asked = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.chain(asked).map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
    }

    /// `pg_hba.conf`: whoever may enter the server's folder is let in; TCP as asked.
    pub(crate) fn access(&self) -> String {
        let kind = if self.tls == Tls::Required { "hostssl" } else { "host" };
        let method = if self.password.is_some() { "scram-sha-256" } else { "trust" };
        let mut lines = "local all all trust\nlocal replication all trust\n".to_owned();
        for database in ["all", "replication"] {
            lines.push_str(&format!("{kind} {database} all 127.0.0.1/32 {method}\n"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asked_setting_comes_last_and_is_quoted() {
        let options = Options::default().with_setting("fsync", "off").with_setting("search_path", "it's");
        let lines = options.configuration(1, "/x");
        assert!(lines.find("fsync = 'on'").unwrap() < lines.find("fsync = 'off'").unwrap());
        assert!(lines.ends_with("search_path = 'it''s'\n"));
    }

    #[test]
    fn required_tls_leaves_no_plain_line_over_tcp() {
        let access = Options::default().with_password("p").with_tls(Tls::Required).access();
        let tcp: Vec<_> = access.lines().filter(|line| line.starts_with("host")).collect();
        assert!(
            tcp.iter().all(|line| line.starts_with("hostssl ") && line.ends_with("scram-sha-256")),
            "{access}"
        );
    }
}
