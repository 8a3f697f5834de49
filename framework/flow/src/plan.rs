//! The plan of a flow: which table goes where, as what, and what stands in the way. It changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Conversions, Fit, Obstacle, Route, Selection};
use tidegate_core::{Column, Error, Result, Shape, Table, TableName};

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Which tables of the source.
    pub tables: Selection,
    /// Names in the target that the user chose, by the name in the source, with or without its schema. The others are
    /// as the target would have them.
    pub names: BTreeMap<String, TableName>,
    /// Conversions that the user named.
    pub conversions: Conversions,
    /// Whether rows may be in the target already.
    pub allow_non_empty: bool,
}

impl Wanted {
    fn name_of<'a>(&'a self, table: &'a TableName) -> &'a TableName {
        self.names.get(&table.to_string()).or_else(|| self.names.get(&table.name)).unwrap_or(table)
    }
}

/// One table of a plan.
#[derive(Clone, Debug)]
pub struct PlannedTable {
    /// The way of its rows.
    pub route: Route,
    /// How the target holds each column.
    pub fits: Vec<Fit>,
}

/// What would be done, and what stands in the way of it.
#[derive(Debug)]
pub struct Plan {
    /// The tables that can be carried.
    pub tables: Vec<PlannedTable>,
    /// What stands in the way. With any, nothing is done.
    pub obstacles: Vec<Obstacle>,
}

impl Plan {
    /// The ways of all tables.
    pub fn routes(&self) -> Vec<Route> {
        self.tables.iter().map(|table| table.route.clone()).collect()
    }
}

/// Works a plan out from what both sides say.
///
/// # Errors
/// If a side cannot be read. What a side refuses is among the obstacles.
pub async fn plan(source: &dyn Catalog, target: &dyn Catalog, wanted: &Wanted) -> Result<Plan> {
    let (tables, mut obstacles) = source.describe(&wanted.tables).await?;
    let mut planned = Vec::new();
    for table in tables {
        if table.key.is_empty() {
            continue;
        }
        match plan_table(source, target, wanted, table) {
            Ok(table) => planned.push(table),
            Err(refusals) => obstacles.extend(refusals),
        }
    }
    if planned.is_empty() && obstacles.is_empty() {
        let error = Error::new(code::TABLE_MISSING, "there is no table to move")
            .hint("the source has no tables that this user can see; check the database's name");
        obstacles.push(Obstacle { table: None, column: None, error });
    }
    let targets: Vec<Arc<Table>> = planned.iter().map(|table| Arc::clone(&table.route.target)).collect();
    obstacles.extend(target.inspect(&targets, wanted.allow_non_empty).await?);
    Ok(Plan { tables: planned, obstacles })
}

/// The way of one table's rows, or the columns that the target cannot hold.
pub(crate) fn plan_table(
    source: &dyn Catalog,
    target: &dyn Catalog,
    wanted: &Wanted,
    table: Table,
) -> Result<PlannedTable, Vec<Obstacle>> {
    let codec = source.codec(&table);
    let (mut fits, mut refusals) = (Vec::new(), Vec::new());
    for column in &table.columns {
        match target.fit(column, codec.encoding(), &wanted.conversions) {
            Ok(fit) => fits.push(fit),
            Err(error) => refusals.push(Obstacle {
                table: Some(table.name.clone()),
                column: Some(column.name.clone()),
                error,
            }),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let columns = table.columns.iter().zip(&fits).map(|(column, fit)| Column {
        name: column.name.clone(),
        kind: fit.kind.clone(),
        native: fit.native.clone(),
        native_id: 0,
        nullable: column.nullable,
        generated: false,
        has_default: false,
    });
    let held = Table {
        name: target.name_for(wanted.name_of(&table.name)),
        native_id: 0,
        columns: columns.collect(),
        key: table.key.clone(),
        rows_estimated: table.rows_estimated,
        bytes_estimated: table.bytes_estimated,
    };
    let shape = Shape { table: Arc::new(table), codec };
    Ok(PlannedTable { route: Route { shape, target: Arc::new(held) }, fits })
}
