//! What the database holds, as a source and as a target.

pub(crate) mod capture;
pub(crate) mod describe;
mod seal;
pub(crate) mod target;

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::port::{Catalog, Conversions, Fit, Identity, Obstacle, Selection};
use tidegate_core::{Codec, Column, Encoding, FlowName, Position, Result, Table, TableName, Value};

use crate::codec::ENCODING;
use crate::connect::Session;
use crate::error::from_driver;
use crate::store::PostgresStore;

/// The server cuts what is longer.
const NAME_BYTES_MAX: usize = 63;

/// The catalog of one database. Each call has a session of its own: they are rare, and none is in another's way.
#[derive(Debug)]
pub(crate) struct PostgresCatalog(pub(crate) PostgresStore);

/// Who a database is, as far as its log is concerned.
pub(crate) async fn identity(session: &Session) -> Result<Identity> {
    let sql = "SELECT s.system_identifier::text, c.timeline_id, d.oid
        FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d WHERE d.datname = current_database()";
    let row = session.query_one(sql, &[]).await.map_err(|e| from_driver(e, "identify"))?;
    let (system, timeline, database): (String, i32, u32) = (row.get(0), row.get(1), row.get(2));
    Ok(Identity(format!("postgres:{system}/{timeline}/{database}")))
}

#[async_trait]
impl Catalog for PostgresCatalog {
    async fn identity(&self) -> Result<Identity> {
        identity(&self.0.session().await?).await
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        describe::describe(&self.0.session().await?, which).await
    }

    fn keeps(&self, before: &Column, now: &Column) -> bool {
        target::keeps_rows(before, now)
    }

    fn codec(&self, _: &Table) -> Arc<dyn Codec> {
        crate::codec()
    }

    async fn capture(&self, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
        capture::capture(&self.0.session().await?, flow, tables).await
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        seal::sealed(&self.0.session().await?, flow).await
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        seal::seal(&self.0.session().await?, flow, was, seal).await
    }

    async fn clean(&self, flow: &FlowName) -> Result<()> {
        capture::clean(&self.0.session().await?, flow).await
    }

    fn accepts(&self, encoding: Encoding) -> bool {
        encoding == ENCODING || encoding == Encoding::CANONICAL
    }

    fn fit(&self, column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
        target::fit(column, encoding, conversions)
    }

    fn stored<'a>(&self, column: &Column, value: Value<'a>) -> Result<Value<'a>> {
        Ok(target::stored(&column.kind, value))
    }

    fn fold(&self, name: &str) -> String {
        name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
    }

    fn name_for(&self, source: &TableName) -> TableName {
        let schema = if source.schema.is_empty() { "public" } else { &source.schema };
        TableName::new(schema, source.name.as_str())
    }

    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>> {
        let session = self.0.session().await?;
        let mut obstacles = target::inspect(&session, tables, allow_non_empty).await?;
        obstacles.extend(target::acting(&session, tables).await?);
        Ok(obstacles)
    }

    async fn create(&self, tables: &[Arc<Table>]) -> Result<()> {
        target::create(&self.0.session().await?, tables).await
    }

    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()> {
        target::extend(&self.0.session().await?, tables).await
    }
}
