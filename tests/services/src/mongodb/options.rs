//! What a test may ask of its MongoDB server.

/// How a server is set up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Options {
    /// The size of the oplog; the server's own default if not given (990 MB is its lowest).
    pub oplog_size_mb: Option<u32>,
    /// Without a replica set: no transactions and no stream of changes.
    pub standalone: bool,
    /// Further arguments of `mongod`.
    pub arguments: Vec<String>,
}

impl Options {
    /// Sets the size of the oplog.
    #[must_use]
    pub fn with_oplog_size_mb(mut self, size: u32) -> Self {
        self.oplog_size_mb = Some(size);
        self
    }

    /// Leaves the replica set out.
    #[must_use]
    pub fn with_no_replica_set(mut self) -> Self {
        self.standalone = true;
        self
    }

    /// Adds an argument of `mongod`, for example `--setParameter=enableTestCommands=1`.
    #[must_use]
    pub fn with_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }
}
