//! What the store holds.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Conversions, Fit, Identity, NOT_EMPTY, Obstacle, Selection};
use tidegate_core::{Codec, Column, Encoding, Error, FlowName, Position, Result, Table, TableName, Value};

use crate::codec::ByNumber;
use crate::store::MemoryStore;

#[async_trait]
impl Catalog for MemoryStore {
    async fn identity(&self) -> Result<Identity> {
        Ok(self.lock().identity.clone())
    }

    async fn describe(&self, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
        let inner = self.lock();
        let described = |name: &TableName| {
            let held = inner.held(name)?;
            Ok(Table { rows_estimated: held.rows.len() as u64, ..held.shape.table.as_ref().clone() })
        };
        let names: Vec<TableName> = match which {
            Selection::All => inner.tables.keys().cloned().collect(),
            Selection::These(names) => names.clone(),
        };
        let mut tables = Vec::new();
        let mut obstacles = Vec::new();
        for name in names {
            match described(&name) {
                Ok(table) if table.key.is_empty() => {
                    let error = Error::new(code::KEY_MISSING, format!("table {name} has no key"));
                    obstacles.push(Obstacle { table: Some(name), column: None, error });
                    tables.push(table);
                }
                Ok(table) => tables.push(table),
                Err(error) => obstacles.push(Obstacle { table: Some(name), column: None, error }),
            }
        }
        Ok((tables, obstacles))
    }

    fn codec(&self, _: &Table) -> Arc<dyn Codec> {
        Arc::new(ByNumber)
    }

    async fn capture(&self, _: &FlowName, _: &[Arc<Table>]) -> Result<Position> {
        Ok(self.lock().seen_frontier())
    }

    async fn sealed(&self, flow: &FlowName) -> Result<Option<String>> {
        Ok(self.lock().seals.get(flow).cloned())
    }

    async fn seal(&self, flow: &FlowName, was: Option<&str>, seal: &str) -> Result<bool> {
        let mut inner = self.lock();
        let is_written = inner.seals.get(flow).map(String::as_str) == was;
        if is_written {
            inner.seals.insert(flow.clone(), seal.to_owned());
        }
        Ok(is_written)
    }

    async fn clean(&self, flow: &FlowName) -> Result<()> {
        self.lock().seals.remove(flow);
        Ok(())
    }

    fn accepts(&self, encoding: Encoding) -> bool {
        encoding == Encoding::CANONICAL
    }

    fn fit(&self, column: &Column, _: Encoding, _: &Conversions) -> Result<Fit> {
        Ok(Fit { native: column.native.clone(), kind: column.kind.clone(), note: None })
    }

    fn name_for(&self, source: &TableName) -> TableName {
        source.clone()
    }

    async fn inspect(&self, tables: &[Arc<Table>], allow_non_empty: bool) -> Result<Vec<Obstacle>> {
        let inner = self.lock();
        let mut obstacles = Vec::new();
        for table in tables {
            let Some(held) = inner.tables.get(&table.name) else { continue };
            let error = if names(&held.shape.table) != names(table) {
                differs(table)
            } else if !held.rows.is_empty() && !allow_non_empty {
                Error::new(code::TARGET_NOT_EMPTY, format!("table {} is not empty", table.name))
                    .hint(NOT_EMPTY)
            } else {
                continue;
            };
            obstacles.push(Obstacle { table: Some(table.name.clone()), column: None, error });
        }
        Ok(obstacles)
    }

    async fn create(&self, tables: &[Arc<Table>]) -> Result<()> {
        let mut inner = self.lock();
        tables.iter().for_each(|table| inner.hold(Arc::clone(table)));
        Ok(())
    }
    async fn extend(&self, tables: &[Arc<Table>]) -> Result<()> {
        let mut inner = self.lock();
        for table in tables {
            let there = Arc::clone(&inner.held(&table.name)?.shape.table);
            let lacking: Vec<Column> = table
                .columns
                .iter()
                .filter(|column| there.position(&column.name).is_none())
                .map(|column| Column { nullable: true, has_default: false, ..column.clone() })
                .collect();
            // The columns of a table here have an order: new ones come last.
            let names_then: Vec<&str> =
                names(&there).into_iter().chain(lacking.iter().map(|c| c.name.as_str())).collect();
            if names_then != names(table) {
                return Err(differs(table));
            }
            inner.grow(&table.name, |columns| columns.extend(lacking.iter().cloned()), &Value::Null);
        }
        Ok(())
    }
}

fn names(table: &Table) -> Vec<&str> {
    table.columns.iter().map(|column| column.name.as_str()).collect()
}

fn differs(table: &Table) -> Error {
    Error::new(code::TARGET_DIFFERS, format!("table {} has other columns", table.name))
        .with("table", &table.name)
}
