//! Keeps the ways of a flow's tables in step with a source whose tables get columns while the flow runs.
//!
//! ```text
//!   source, as it is ──▶ compared with the record of what the flow knows
//!                          ├─ the same                    go on
//!                          ├─ columns more, null so far   the target gets them, then the record; go on
//!                          └─ anything else               the table is refused, by name, until it is copied again
//! ```
//!
//! The target gets a column before the record says so, and no row is written by the new description before both are
//! durable: after a crash anywhere the comparison comes to the same answer. The checkpoint stays where it was. What is
//! delivered again from before the column has null there, as the rows had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Catalog, Obstacle, Route, Side, StateStore};
use tidegate_core::{Column, Error, FlowName, Result, Shape, Table, TableName};

use crate::engine::Flow;
use crate::plan::{Plan, PlannedTable, Wanted, plan_table};
use crate::plant::{self, Bug};
use crate::run::{change, read};

/// The record of the tables as the flow knows them.
pub const TABLES: &str = "tables";

/// A table as the flow knows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Known {
    /// In the source.
    pub source: Table,
    /// In the target.
    pub target: Table,
}

impl Known {
    /// The table as it was planned when the flow saw it last.
    pub fn planned(&self, source: &dyn Catalog) -> PlannedTable {
        let shape = Shape { codec: source.codec(&self.source), table: Arc::new(self.source.clone()) };
        PlannedTable { route: Route { shape, target: Arc::new(self.target.clone()) }, fits: Vec::new() }
    }
}

/// The tables of a flow, by their names in the source.
pub type Record = BTreeMap<String, Known>;

/// The tables as the flow knows them; none if it never ran.
///
/// # Errors
/// As the store's.
pub async fn known(state: &dyn StateStore, flow: &FlowName) -> Result<Record> {
    Ok(read::<Record>(state, flow, TABLES).await?.0)
}

/// Looks at both sides anew and makes the routes follow, the target's tables with them. Tables that cannot be followed
/// are refused; those in `recopied`, by their names in the source, are to be crawled anew, and whatever they are now is
/// taken as it is. Returns whether a route is another one, or another table is refused.
///
/// # Errors
/// If a side cannot be read, or a table that did not change cannot be carried any more; `config-invalid` if the flow knows a
/// table that has no route: its changes would be lost.
pub async fn renew(
    flow: &mut Flow,
    state: &dyn StateStore,
    recopied: &BTreeSet<String>,
    doubt: &mut Doubt,
) -> Result<bool> {
    let record = known(state, &flow.name).await?;
    let is_routed =
        |name: &String| flow.routes.iter().any(|route| route.shape.table.name.to_string() == *name);
    if let Some(name) = record.keys().find(|name| !is_routed(name)) {
        return Err(left_out(name));
    }
    let (source, target) = (flow.source.catalog().await?, flow.target.catalog().await?);
    let (found, obstacles) = source.describe(&flow.wanted.tables).await?;
    let wanted = flow.wanted.clone();
    let follower = Follower {
        wanted: &wanted,
        source: source.as_ref(),
        target: target.as_ref(),
        obstacles: &obstacles,
        recopied,
    };
    let mut renewed = record.clone();
    let mut refused = BTreeMap::new();
    let mut changed = false;
    for (at, route) in flow.routes.clone().iter().enumerate() {
        let name = route.shape.table.name.to_string();
        let known = record.get(&name).cloned().unwrap_or_else(|| Known {
            source: route.shape.table.as_ref().clone(),
            target: route.target.as_ref().clone(),
        });
        let Some(now) = found.iter().find(|table| table.name == known.source.name) else {
            let is_there = |obstacle: &&Obstacle| {
                obstacle.table.as_ref() == Some(&known.source.name)
                    && obstacle.error.code() != code::TABLE_MISSING
            };
            let what = match obstacles.iter().find(is_there) {
                Some(obstacle) => unreadable(obstacle),
                None => "the table is gone, renamed or moved, or was not named".to_owned(),
            };
            refused.insert(at, refusal(&known.source, "", &what).line());
            renewed.insert(name, known);
            continue;
        };
        match follower.follow(&known, now).await {
            Ok(next) => {
                changed |= next.shape.table.columns != known.source.columns;
                let (source, target) = (next.shape.table.as_ref().clone(), next.target.as_ref().clone());
                renewed.insert(name, Known { source, target });
                flow.routes[at] = next;
            }
            Err(error) if error.code() == code::SCHEMA_CHANGED => {
                refused.insert(at, error.line());
                flow.routes[at] = known.planned(source.as_ref()).route;
                renewed.insert(name, known);
            }
            Err(error) => return Err(error),
        }
    }
    for (table, error) in std::mem::take(&mut doubt.believed) {
        refused.entry(table).or_insert_with(|| error.line());
    }
    if renewed != record {
        change(state, &flow.name, TABLES, |record: &mut Record| *record = renewed.clone()).await?;
    }
    // Only a copy made anew brings a refused table back.
    for (table, reason) in &flow.refused {
        if !recopied.contains(&flow.routes[*table].shape.table.name.to_string()) {
            refused.entry(*table).or_insert_with(|| reason.clone());
        }
    }
    changed |= refused != flow.refused;
    flow.refused = refused;
    if changed {
        // What was heard so far may be explained by that.
        doubt.heard.clear();
    }
    Ok(changed)
}

/// Finds that the tables are what the routes say.
///
/// # Errors
/// `schema-changed` if one is not; as the source's.
pub(crate) async fn check_described(flow: &Flow, source: &dyn Catalog) -> Result<()> {
    let (found, _) = source.describe(&flow.wanted.tables).await?;
    let routes = flow.routes.iter().enumerate().filter(|(at, _)| !flow.refused.contains_key(at));
    let mut tables = routes.map(|(_, route)| &route.shape.table);
    let is_as_described =
        |table: &Table| found.iter().any(|now| now.name == table.name && is_same(source, table, now));
    let Some(table) = tables.find(|table| !is_as_described(table)) else { return Ok(()) };
    Err(Error::new(code::SCHEMA_CHANGED, "the table was changed after it was described")
        .with("table", &table.name))
}

/// A table that is left out for one run would come back without the changes of that time.
fn left_out(name: &str) -> Error {
    let text = format!("table {name} is part of this migration and was left out; nothing was changed");
    let hint = format!(
        "name it too; to leave it out for good: tidegate migrate skip --table {name}, while the migration runs with it"
    );
    Error::new(code::CONFIG_INVALID, text).hint(hint)
}

/// How long an error that the tables do not explain may be one of a change that readers do not see yet.
const DOUBT: Duration = Duration::from_secs(5);

/// An error that did not come again for so long was one of a change that is over.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Decides when a `schema-changed` that a renewal did not explain is believed.
#[derive(Debug, Default)]
pub struct Doubt {
    /// When errors about a table, or about none of the flow, came first and last.
    heard: BTreeMap<Option<usize>, (Duration, Duration)>,
    /// What the next renewal refuses.
    believed: BTreeMap<usize, Error>,
}

impl Doubt {
    /// Takes the error that ended a run. Once there has been time enough for an explanation, the next renewal refuses its
    /// table.
    ///
    /// # Errors
    /// The error itself then, if it is about no table of the flow.
    pub fn hear(&mut self, flow: &Flow, error: Error) -> Result<()> {
        let table = flow.table_of(Side::Source, &error);
        if self.is_over(table, flow.clock.elapsed()) {
            let Some(table) = table else { return Err(error) };
            self.believed.insert(table, error);
        }
        Ok(())
    }

    /// Whether errors about this have come for longer than they may without an explanation.
    fn is_over(&mut self, table: Option<usize>, now: Duration) -> bool {
        let (first, last) = self.heard.entry(table).or_insert((now, now));
        if now.saturating_sub(*last) > FORGET_AFTER {
            *first = now;
        }
        *last = now;
        now.saturating_sub(*first) > DOUBT
    }
}

impl Plan {
    /// Tables that the flow knows and that would go elsewhere than they went so far.
    pub fn elsewhere(&self, record: &Record) -> Vec<Obstacle> {
        let obstacle = |PlannedTable { route, .. }: &PlannedTable| {
            let name = &route.shape.table.name;
            let error = elsewhere(record.get(&name.to_string())?, &route.target.name)?;
            Some(Obstacle { table: Some(name.clone()), column: None, error })
        };
        self.tables.iter().filter_map(obstacle).collect()
    }

    /// The plan of a flow that ran before. The rows of a table that it knows are its own. What stands in the way of one,
    /// because that table is another one now, is left to [`renew`]; the table is planned as the flow knows it.
    #[must_use]
    pub fn resumed(mut self, record: &Record, source: &dyn Catalog) -> Self {
        let key = |name: &TableName, in_target: bool| {
            let is = |known: &&Known| {
                if in_target { known.target.name == *name } else { known.source.name == *name }
            };
            record.values().find(is)
        };
        let changed = |known: &Known| {
            let planned = self.tables.iter().map(|planned| &planned.route.shape.table);
            let mut now = planned.filter(|table| table.name == known.source.name);
            now.all(|now| !is_same(source, &known.source, now))
        };
        // Said first: what is found under the new name does not matter then.
        let elsewhere = self.elsewhere(record);
        self.obstacles.splice(..0, elsewhere);
        let is_known = |target: &TableName| {
            let mut planned = self.tables.iter().map(|planned| &planned.route);
            planned.any(|route| {
                let known = record.get(&route.shape.table.name.to_string());
                route.target.name == *target && known.is_some_and(|known| known.target.name == *target)
            })
        };
        let mut others = BTreeMap::new();
        self.obstacles.retain(|obstacle| {
            let Some(name) = &obstacle.table else { return true };
            if obstacle.error.code() == code::TARGET_NOT_EMPTY && is_known(name) {
                return false;
            }
            let differs = obstacle.error.code() == code::TARGET_DIFFERS;
            // One that is known had a key.
            let gone = [code::TABLE_MISSING, code::KEY_MISSING].contains(&obstacle.error.code());
            // A table as a whole that the source cannot follow any more.
            let lost = obstacle.error.code() == code::CAPABILITY_MISSING;
            let is_about =
                |known: &&Known| gone || (differs || lost || obstacle.column.is_some()) && changed(known);
            let Some(known) = key(name, differs).filter(is_about) else {
                return true;
            };
            others.insert(known.source.name.to_string(), known);
            false
        });
        self.tables.retain(|table| !others.contains_key(&table.route.shape.table.name.to_string()));
        self.tables.extend(others.values().map(|known| known.planned(source)));
        self
    }
}

/// Why a table cannot go on to another one of the target than the one that has its rows.
fn elsewhere(known: &Known, target: &TableName) -> Option<Error> {
    let (source, held) = (&known.source.name, &known.target.name);
    (held != target).then(|| {
        let text =
            format!("table {source} was moved to {held} and would go to {target} now; nothing was written");
        Error::new(code::MAPPING_INVALID, text)
            .hint(format!("keep the name {held}, or begin anew: tidegate migrate abort, or a new --name"))
            .with("table", source)
    })
}

struct Follower<'a> {
    wanted: &'a Wanted,
    source: &'a dyn Catalog,
    target: &'a dyn Catalog,
    obstacles: &'a [Obstacle],
    recopied: &'a BTreeSet<String>,
}

impl Follower<'_> {
    /// The route of a table as it is now.
    async fn follow(&self, known: &Known, now: &Table) -> Result<Route> {
        let all_anew = self.recopied.contains(&now.name.to_string());
        let added = added(&known.source, now);
        let same = is_same(self.source, &known.source, now);
        if !all_anew {
            if let Some((column, what)) = difference(self.source, &known.source, now) {
                return Err(refusal(now, column, what));
            }
            if let Some((column, what)) = added.iter().find_map(|column| Some((*column, unfit(column)?))) {
                return Err(refusal(now, &column.name, what));
            }
        }
        let new = |column: &str| known.source.position(column).is_none();
        let of_column = |obstacle: &&Obstacle| {
            obstacle.table.as_ref() == Some(&now.name) && obstacle.column.as_deref().is_some_and(new)
        };
        let of_table =
            |obstacle: &&Obstacle| obstacle.table.as_ref() == Some(&now.name) && obstacle.column.is_none();
        if let Some(obstacle) = self.obstacles.iter().find(of_table).filter(|_| all_anew) {
            return Err(refusal(now, "", &unreadable(obstacle)));
        }
        if let Some(obstacle) = self.obstacles.iter().find(of_column) {
            let column = obstacle.column.as_deref().unwrap_or_default();
            return Err(refusal(now, column, &format!("was added and cannot be read: {}", obstacle.error)));
        }
        let planned = plan_table(self.source, self.target, self.wanted, as_followed(known, now));
        let route = match planned {
            Ok(planned) => planned.route,
            Err(mut refusals) => {
                let Some(obstacle) = refusals.pop() else {
                    return Err(Error::new(code::INTERNAL, "a refusal without an error"));
                };
                let column = obstacle.column.unwrap_or_default();
                if same {
                    return Err(obstacle.error.with("table", &now.name).with("column", column));
                }
                let hint = obstacle.error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
                let what = format!("cannot be held by the target: {}{hint}", obstacle.error);
                return Err(refusal(now, &column, &what));
            }
        };
        if let Some(error) = elsewhere(known, &route.target.name) {
            return Err(error);
        }
        if !same || all_anew {
            self.extend(now, &added, &route, all_anew).await?;
        }
        Ok(route)
    }

    /// Gives the target's table the columns. One that is to be copied anew is created if it is gone.
    async fn extend(&self, now: &Table, added: &[&Column], route: &Route, all_anew: bool) -> Result<()> {
        for column in added {
            tracing::info!(table = %now.name, column = column.name, "a column was added; the target follows");
        }
        let target = std::slice::from_ref(&route.target);
        let extended = match self.target.extend(target).await {
            Err(error) if all_anew && error.code() == code::TABLE_MISSING => self.target.create(target).await,
            extended => extended,
        };
        match extended {
            Err(error) if error.verdict() == Verdict::Never => {
                let column = added.first().map_or("", |column| column.name.as_str());
                let hint = error.hint_text().map(|hint| format!("; {hint}")).unwrap_or_default();
                let what = format!(
                    "the target's table {} cannot follow: {}{hint}; give it the columns of the source by hand, or drop it \
                     there and abort and begin anew",
                    route.target.name,
                    error.line()
                );
                Err(refusal(now, column, &what))
            }
            other => other,
        }
    }
}

/// A table as it is now, with what the flow knows of its columns: one that was there is what it was, and one that is
/// new has null in every row from before. Where that is not so, the table is crawled anew, by reads that show the column.
fn as_followed(known: &Known, now: &Table) -> Table {
    let mut table = now.clone();
    for column in &mut table.columns {
        let before = known.source.position(&column.name).map(|at| &known.source.columns[at]);
        column.nullable = before.is_none_or(|before| before.nullable);
        column.has_default = before.is_some_and(|before| before.has_default);
    }
    table
}

fn added<'t>(before: &Table, now: &'t Table) -> Vec<&'t Column> {
    now.columns.iter().filter(|column| before.position(&column.name).is_none()).collect()
}

fn is_same(source: &dyn Catalog, before: &Table, now: &Table) -> bool {
    added(before, now).is_empty() && difference(source, before, now).is_none()
}

const ANOTHER: &str = "another table has taken the name, or the source did not keep all changes of this one";

/// What is another in a table beside columns that are new: the column, and what is with it.
fn difference<'t>(source: &dyn Catalog, before: &'t Table, now: &Table) -> Option<(&'t str, &'static str)> {
    if before.native_id != now.native_id {
        return Some(("", ANOTHER));
    }
    let mut last = None;
    for column in &before.columns {
        let Some(at) = now.position(&column.name) else { return Some((&column.name, "is gone, or renamed")) };
        // Columns keep their order, and new ones come behind: two have exchanged their names.
        if last.is_some_and(|last| last > at) {
            return Some((&column.name, "is another one under the same name: columns have exchanged names"));
        }
        last = Some(at);
        if !source.keeps(column, &now.columns[at]) {
            return Some((&column.name, "has another type"));
        }
    }
    let key = |table: &Table| table.key_columns().map(|column| column.name.clone()).collect::<Vec<_>>();
    (key(before) != key(now)).then_some(("", "the table has another key"))
}

/// Why a new column is not null in the rows that were there; no change tells what it is.
fn unfit(column: &Column) -> Option<&'static str> {
    if column.has_default && !plant::is(Bug::DefaultForgotten) {
        return Some("was added with a default: the rows that were there have a value that no change tells");
    }
    if column.generated {
        return Some("was added and is computed: the rows that were there have a value that no change tells");
    }
    if !column.nullable {
        return Some("was added and is NOT NULL: the rows that were there have a value that no change tells");
    }
    None
}

/// What stands in the way of a table as a whole.
fn unreadable(obstacle: &Obstacle) -> String {
    format!("the table cannot be read as it is now: {}", obstacle.error)
}

fn refusal(table: &Table, column: &str, what: &str) -> Error {
    let column = (!column.is_empty()).then_some(column);
    let what = column.map_or_else(|| what.to_owned(), |column| format!("column {column} {what}"));
    let message = format!(
        "{what}. What was moved is safe, later changes of this table are not moved; the way on: \
         tidegate migrate recopy --table {}",
        table.name
    );
    let error = Error::new(code::SCHEMA_CHANGED, message).with("table", &table.name);
    match column {
        Some(column) => error.with("column", column),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::Type;
    use tidegate_core::port::Store as _;

    use super::*;

    fn table(columns: &[&str]) -> Table {
        let column = |word: &&str| {
            let (name, kind) = word.split_once(' ').unwrap_or((word, ""));
            let kind = if kind == "int" { Type::Int { bits: 64 } } else { Type::Text };
            Column::new(name, kind)
        };
        Table {
            name: TableName::new("", "t"),
            native_id: 0,
            columns: columns.iter().map(column).collect(),
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        }
    }

    #[tokio::test]
    async fn columns_more_are_followed_and_anything_else_is_named() {
        let source = tidegate_memory::MemoryStore::new("shop").catalog().await.unwrap();
        let before = table(&["id int", "note"]);
        for (now, found) in [
            (table(&["id int", "note"]), None),
            (table(&["id int", "note", "paid int"]), None),
            (table(&["id int", "remark"]), Some(("note", "is gone, or renamed"))),
            (table(&["id int", "paid int", "note"]), None),
            // Found by trying: names that two columns had exchanged.
            (
                table(&["note", "id int"]),
                Some(("note", "is another one under the same name: columns have exchanged names")),
            ),
            (table(&["id int", "note int"]), Some(("note", "has another type"))),
            (Table { key: vec![1], ..table(&["id int", "note"]) }, Some(("", "the table has another key"))),
            (Table { native_id: 7, ..table(&["id int", "note"]) }, Some(("", ANOTHER))),
        ] {
            assert_eq!(difference(source.as_ref(), &before, &now), found, "{now:?}");
        }
        assert_eq!(added(&before, &table(&["id int", "note", "paid int"])).len(), 1);
        assert!(refusal(&before, "note", "is gone").line().contains("column: note"));
        assert!(!refusal(&before, "", ANOTHER).line().contains("column:"), "no column is named");
    }

    /// Found by reading: two tables whose errors took turns were doubted for ever.
    #[test]
    fn each_table_is_doubted_by_itself_and_not_for_ever() {
        let mut doubt = Doubt::default();
        let mut hear = |table, at| doubt.is_over(table, Duration::from_secs(at));
        for at in 0..=5 {
            assert!(!hear(Some(0), at) && !hear(Some(1), at), "an explanation may still come");
        }
        assert!(!hear(None, 6));
        assert!(hear(Some(0), 6) && hear(Some(1), 7));
        assert!(!hear(Some(0), 100), "what came so long ago is over");
        assert!(hear(Some(0), 106));
    }

    #[test]
    fn only_a_column_that_is_null_in_every_row_so_far_is_followed() {
        let plain = Column::new("paid", Type::Bool);
        assert_eq!(unfit(&plain), None);
        for column in [
            Column { has_default: true, ..plain.clone() },
            Column { nullable: false, ..plain.clone() },
            Column { generated: true, ..plain },
        ] {
            assert!(unfit(&column).is_some(), "{column:?}");
        }
    }
}
