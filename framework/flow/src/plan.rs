//! The plan of a flow: which table goes where, as what, and what stands in the way. It changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Conversions, Fit, Obstacle, Route, Selection};
use tidegate_core::{Column, Error, Result, Shape, Table, TableName};

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Which tables of the source.
    pub tables: Selection,
    /// Of these, tables that are left out, by their names in the source, with or without their schema.
    pub exclude: BTreeSet<String>,
    /// Names in the target that the user chose, by the name in the source, with or without its schema. The others are
    /// as the target would have them.
    pub names: BTreeMap<String, TableName>,
    /// Conversions that the user named.
    pub conversions: Conversions,
    /// Whether rows may be in the target already.
    pub allow_non_empty: bool,
}

impl Wanted {
    /// Whether a table is left out.
    pub fn excludes(&self, table: &TableName) -> bool {
        self.exclude.iter().any(|name| table.is_called(name))
    }

    fn name_of<'a>(&'a self, table: &'a TableName) -> &'a TableName {
        self.names.get(&table.to_string()).or_else(|| self.names.get(&table.name)).unwrap_or(table)
    }

    /// Tables that are to be left out of all, and are not there.
    fn excluded_in_vain(&self, tables: &[Table], obstacles: &[Obstacle]) -> Vec<Obstacle> {
        let found = tables.iter().map(|table| &table.name);
        let found: Vec<_> = found.chain(obstacles.iter().filter_map(|found| found.table.as_ref())).collect();
        let is_there = |name: &String| found.iter().any(|table| table.is_called(name));
        let in_vain = self.exclude.iter().filter(|name| self.tables == Selection::All && !is_there(name));
        let error = |name: &String| {
            let text = format!("{name} cannot be left out: the source has no such table");
            Obstacle { table: None, column: None, error: Error::new(code::TABLE_MISSING, text) }
        };
        in_vain.map(error).collect()
    }

    /// Names that the user chose for tables that are not moved.
    fn unknown(&self, planned: &[PlannedTable], obstacles: &[Obstacle]) -> Vec<Obstacle> {
        let moved = planned.iter().map(|planned| &planned.route.shape.table.name);
        let tables: Vec<_> = moved.chain(obstacles.iter().filter_map(|found| found.table.as_ref())).collect();
        let is_unknown = |name: &&String| !tables.iter().any(|table| table.is_called(name));
        let error = |name: &String| {
            let text = format!(
                "the mapping of {name} cannot be followed: it is not among the tables that are moved"
            );
            Obstacle { table: None, column: None, error: Error::new(code::MAPPING_INVALID, text) }
        };
        self.names.keys().filter(is_unknown).map(error).collect()
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
    let excluded_in_vain = wanted.excluded_in_vain(&tables, &obstacles);
    obstacles.retain(|obstacle| !obstacle.table.as_ref().is_some_and(|table| wanted.excludes(table)));
    let mut planned = Vec::new();
    for table in tables {
        if table.key.is_empty() || wanted.excludes(&table.name) {
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
    obstacles.extend(excluded_in_vain);
    obstacles.extend(wanted.unknown(&planned, &obstacles));
    obstacles.extend(collisions(target, &planned));
    obstacles.extend(loops(source, target, &planned).await);
    let targets: Vec<Arc<Table>> = planned.iter().map(|table| Arc::clone(&table.route.target)).collect();
    obstacles.extend(target.inspect(&targets, wanted.allow_non_empty).await?);
    Ok(Plan { tables: planned, obstacles })
}

fn obstacle(table: &TableName, column: Option<&str>, error: Error) -> Obstacle {
    Obstacle { table: Some(table.clone()), column: column.map(str::to_owned), error }
}

/// Tables that are written alike, and tables, and columns of one table, that the target takes for one.
fn collisions(target: &dyn Catalog, planned: &[PlannedTable]) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let (mut tables, mut words) = (BTreeMap::new(), BTreeSet::new());
    for PlannedTable { route: Route { shape, target: held }, .. } in planned {
        let own = &shape.table.name;
        if !words.insert(own.to_string()) {
            // What is known of a table is known by this.
            let text = format!("two tables are both written {own}: their schemas and names have dots");
            let error = Error::new(code::MAPPING_INVALID, text).hint("rename one of them, or leave it out");
            found.push(obstacle(own, None, error));
            continue;
        }
        if let Some(other) = tables.insert(folded(target, &held.name), own) {
            let text = format!("{other} and {own} would both be written to {} of the target", held.name);
            let error = Error::new(code::MAPPING_INVALID, text)
                .hint("give one of them another name there (--map TABLE=NAME), or leave one out");
            found.push(obstacle(own, None, error));
        }
        let mut columns = BTreeMap::new();
        for column in &held.columns {
            if let Some(other) = columns.insert(target.fold(&column.name), &column.name) {
                let text = format!("columns {other} and {} are one to the target", column.name);
                let error = Error::new(code::MAPPING_INVALID, text).hint("rename one of them in the mapping");
                found.push(obstacle(own, Some(&column.name), error));
            }
        }
    }
    found
}

fn folded(catalog: &dyn Catalog, name: &TableName) -> (String, String) {
    (catalog.fold(&name.schema), catalog.fold(&name.name))
}

/// Tables that would be written into a table that is captured: what is written would be captured again, without end.
async fn loops(source: &dyn Catalog, target: &dyn Catalog, planned: &[PlannedTable]) -> Vec<Obstacle> {
    // A target that does not exist yet is another one; one that does not say who it is cannot be compared.
    let (Ok(from), Ok(to)) = (source.identity().await, target.identity().await) else { return Vec::new() };
    if from != to {
        return Vec::new();
    }
    let sources: BTreeSet<_> =
        planned.iter().map(|planned| folded(target, &planned.route.shape.table.name)).collect();
    let is_loop = |planned: &&PlannedTable| sources.contains(&folded(target, &planned.route.target.name));
    let error = || {
        Error::new(
            code::CONFIG_INVALID,
            "source and target are one database, and the table would be written to itself",
        )
        .hint("check --from and --to; within one database give the tables other names (--table, --map)")
    };
    planned
        .iter()
        .filter(is_loop)
        .map(|planned| obstacle(&planned.route.shape.table.name, None, error()))
        .collect()
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
    let takes_cells = target.accepts(codec.encoding());
    for column in &table.columns {
        let is_value = !takes_cells || column.conversion(&wanted.conversions).is_some();
        if is_value && !codec.has_values(column) {
            let error = Error::new(
                code::TYPE_REFUSED,
                "only the source's own kind of store knows such values",
            )
            .with("column", &column.name)
            .with("type", &column.native)
            .hint("drop the column in the mapping; a column of text beside it may have the values' text");
            refusals.push(obstacle(&table.name, Some(&column.name), error));
            continue;
        }
        match target.fit(column, codec.encoding(), &wanted.conversions) {
            Ok(fit) => fits.push(fit),
            Err(error) => refusals.push(obstacle(&table.name, Some(&column.name), error)),
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
