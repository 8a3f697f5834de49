//! One database.

use std::sync::Arc;

use async_trait::async_trait;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use tidegate_core::error::code;
use tidegate_core::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store};
use tidegate_core::{Endpoint, Error, FlowName, Position, Result, Table};
use tokio::sync::OnceCell;

use crate::change_feed::MongoFeed;
use crate::connect;
use crate::crawler::MongoCrawler;
use crate::error::During;
use crate::sink::MongoSink;
use crate::stream::Floor;

/// What the names of our own collections begin with.
pub(crate) const OURS: &str = "tidegate.";

/// A database of a replica set, as a source or a target.
#[derive(Clone, Debug)]
pub(crate) struct MongoStore {
    endpoint: Endpoint,
    name: String,
    database: Arc<OnceCell<Database>>,
    floor: Floor,
}

impl MongoStore {
    pub(crate) fn new(endpoint: &Endpoint) -> Result<Self> {
        let name = connect::database_name(endpoint)?;
        Ok(Self { endpoint: endpoint.clone(), name, database: Arc::default(), floor: Floor::default() })
    }

    /// The database. The first call connects and looks whether it is of a replica set of a version that will do.
    pub(crate) async fn database(&self) -> Result<&Database> {
        self.database
            .get_or_try_init(async || {
                let database = connect::database(&self.endpoint, &self.name).await?;
                let hello = database.run_command(doc! { "hello": 1 }).await.during("greet the server")?;
                require_version(&hello)?;
                require_replica_set(&hello)?;
                Ok(database)
            })
            .await
    }

    pub(crate) fn floor(&self) -> &Floor {
        &self.floor
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn identity(&self) -> Result<Identity> {
        let database = self.database().await?;
        let admin = database.client().database("admin");
        let config =
            admin.run_command(doc! { "replSetGetConfig": 1 }).await.during("ask who the server is")?;
        let id = config
            .get_document("config")
            .and_then(|config| config.get_document("settings"))
            .and_then(|settings| settings.get_object_id("replicaSetId"))
            .map_err(|e| Error::new(code::REPLICA_SET_REQUIRED, "the replica set has no id").because(e))?;
        Ok(Identity(format!("mongodb:{id}/{}", self.name)))
    }
}

/// What 6.0 calls itself in its protocol: the first version in which a change stream says which collection it is about, and a
/// command can be bound to one.
const WIRE_OLDEST: i32 = 17;

/// Whether a server is not older than 6.0, by its greeting.
pub(crate) fn is_new_enough(hello: &Document) -> bool {
    hello.get_i32("maxWireVersion").is_ok_and(|version| version >= WIRE_OLDEST)
}

fn require_version(hello: &Document) -> Result<()> {
    if is_new_enough(hello) {
        return Ok(());
    }
    Err(Error::new(code::VERSION_UNSUPPORTED, "the server is older than MongoDB 6.0")
        .hint("upgrade it; nothing was changed"))
}

fn require_replica_set(hello: &Document) -> Result<()> {
    if hello.get_str("msg").is_ok_and(|what| what == "isdbgrid") {
        return Err(Error::new(code::CAPABILITY_MISSING, "the server is the router of a sharded cluster")
            .hint("name one shard's replica set"));
    }
    if hello.contains_key("setName") {
        return Ok(());
    }
    Err(Error::new(code::REPLICA_SET_REQUIRED, "the server is not a member of a replica set").hint(
        "start mongod with --replSet NAME and run rs.initiate() once; one member is enough, no data is touched",
    ))
}

#[async_trait]
impl Store for MongoStore {
    fn location(&self) -> String {
        self.endpoint.to_string()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        self.database().await?;
        Ok(Arc::new(self.clone()))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(MongoCrawler::new(self.database().await?.clone(), self.floor.clone())))
    }

    async fn change_feed(
        &self,
        _flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        if self.identity().await? != *source {
            return Err(Error::new(
                code::SOURCE_REPLACED,
                "the source is another replica set or database than the flow began with",
            ));
        }
        Ok(Box::new(MongoFeed::open(self.database().await?.clone(), tables, from).await?))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(MongoSink::open(self.database().await?.clone(), flow, routes).await?))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        Ok(Arc::new(self.clone()))
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.database().await?;
        Ok(Arc::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by reading: 5.0 was called good, and failed at its first change stream or write.
    #[test]
    fn a_server_older_than_6_is_refused_by_name() {
        for (version, is_refused) in
            [(8, true), (13, true), (16, true), (17, false), (21, false), (25, false)]
        {
            let hello = doc! { "setName": "rs0", "maxWireVersion": version };
            let refused = require_version(&hello).err().map(|error| error.code());
            assert_eq!(refused, is_refused.then_some(code::VERSION_UNSUPPORTED), "{version}");
        }
    }
}
