//! What a store holds, and what a transaction does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::port::{Checkpoint, Identity, Stored};
use tidegate_core::{
    Cell, Column, Error, FlowName, Mark, Op, Position, Result, Row, RowWriter, Shape, Table, TableName, Value,
};

use crate::codec::ByNumber;
use crate::timers::Kept;

/// One write of a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    table: TableName,
    action: Action,
}

#[derive(Clone, Debug)]
enum Action {
    Insert(Vec<Value<'static>>),
    Update { key: Vec<Value<'static>>, set: Vec<(usize, Value<'static>)> },
    Delete { key: Vec<Value<'static>> },
    Truncate,
}

impl Write {
    /// A new row: one value a column.
    pub fn insert(table: &TableName, row: impl IntoIterator<Item = Value<'static>>) -> Self {
        Self { table: table.clone(), action: Action::Insert(row.into_iter().collect()) }
    }

    /// New values for some columns, by their places, of the row with this key. A key column may be among them.
    pub fn update(
        table: &TableName,
        key: impl IntoIterator<Item = Value<'static>>,
        set: impl IntoIterator<Item = (usize, Value<'static>)>,
    ) -> Self {
        let action = Action::Update { key: key.into_iter().collect(), set: set.into_iter().collect() };
        Self { table: table.clone(), action }
    }

    /// No more row with this key.
    pub fn delete(table: &TableName, key: impl IntoIterator<Item = Value<'static>>) -> Self {
        Self { table: table.clone(), action: Action::Delete { key: key.into_iter().collect() } }
    }

    /// No more rows.
    pub fn truncate(table: &TableName) -> Self {
        Self { table: table.clone(), action: Action::Truncate }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) identity: Identity,
    pub(crate) tables: BTreeMap<TableName, Held>,
    /// How many tables were ever made.
    pub(crate) made: u64,
    pub(crate) log: Vec<Logged>,
    /// Entries before this place of the log are gone.
    pub(crate) log_start: usize,
    pub(crate) next_mark: Mark,
    /// Logged transactions that readers do not see yet.
    pub(crate) hidden: BTreeMap<Mark, Vec<Effect>>,
    pub(crate) flows: BTreeMap<FlowName, FlowState>,
    /// How often a flow was taken over; never again what it was, also for one that was forgotten.
    pub(crate) fences: u64,
    /// How often a timer was set.
    pub(crate) timers_put: u64,
    pub(crate) seals: BTreeMap<FlowName, String>,
}

/// A table with its rows by the identity of their key.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Which one it is of all that were ever made.
    pub(crate) id: u64,
    pub(crate) shape: Shape,
    pub(crate) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Columns that the log leaves out of an update that does not touch them.
    pub(crate) lazy: BTreeSet<usize>,
    /// Unique indexes beside the key: a sink keeps to them.
    pub(crate) unique: Vec<Vec<usize>>,
}

/// What a transaction does to the rows, once it is seen.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Put { table: TableName, key: Vec<u8>, row: Vec<u8> },
    Remove { table: TableName, key: Vec<u8> },
    Clear { table: TableName },
}

/// An entry of the log: a transaction, if it has a mark.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) mark: Option<Mark>,
    pub(crate) changes: Vec<LoggedChange>,
}

#[derive(Clone, Debug)]
pub(crate) struct LoggedChange {
    pub(crate) table: TableName,
    pub(crate) op: Op,
    pub(crate) row: Option<Vec<u8>>,
    pub(crate) old_key: Option<Vec<u8>>,
}

/// What the store remembers of a flow, as target or as keeper of its state.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlowState {
    pub(crate) records: BTreeMap<String, Stored>,
    pub(crate) lease: Option<(String, Duration)>,
    pub(crate) timers: BTreeMap<String, Kept>,
    /// Its tables are numbered by their places in `tables`.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// The tables of the source that it was ever opened with.
    pub(crate) tables: Vec<TableName>,
    /// Which tables its rows go to, by the tables of the source.
    pub(crate) identities: BTreeMap<TableName, u64>,
    pub(crate) fence: u64,
}

pub(crate) fn values(shape: &Shape, frame: &[u8]) -> Vec<Value<'static>> {
    let row = Row::parse(frame).into_iter().flat_map(Row::cells);
    row.enumerate()
        .map(|(at, cell)| shape.value(at, cell).ok().flatten().map_or(Value::Null, Value::into_owned))
        .collect()
}

pub(crate) fn frame<'v>(values: impl IntoIterator<Item = &'v Value<'static>>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    values.into_iter().for_each(|value| writer.value(value));
    writer.finish();
    out
}

impl Inner {
    pub(crate) fn hold(&mut self, table: Arc<Table>) {
        let shape = Shape { table, codec: Arc::new(ByNumber) };
        let name = shape.table.name.clone();
        self.made += 1;
        self.tables.entry(name).or_insert(Held {
            id: self.made,
            shape,
            rows: BTreeMap::new(),
            lazy: BTreeSet::new(),
            unique: Vec::new(),
        });
    }

    /// Adds columns behind the others of a table; every row has that value there.
    pub(crate) fn grow(
        &mut self,
        table: &TableName,
        add: impl FnOnce(&mut Vec<Column>),
        value: &Value<'static>,
    ) {
        let Some(held) = self.tables.get_mut(table) else { return };
        let mut grown = held.shape.table.as_ref().clone();
        let before = grown.columns.len();
        add(&mut grown.columns);
        let more = grown.columns.len() - before;
        held.shape.table = Arc::new(grown);
        for frame in held.rows.values_mut() {
            let row = Row::parse(frame).into_iter().flat_map(Row::cells);
            let mut out = Vec::new();
            let mut writer = RowWriter::new(&mut out);
            row.for_each(|cell| writer.cell(cell));
            (0..more).for_each(|_| writer.value(value));
            writer.finish();
            *frame = out;
        }
    }

    /// The next mark that a transaction will have.
    pub(crate) fn next_mark(&self) -> Mark {
        self.next_mark
    }

    /// The place behind the last entry of the log.
    pub(crate) fn frontier(&self) -> Position {
        Position::from_u64(self.log.len() as u64)
    }

    /// The place in the log before which everything is seen.
    pub(crate) fn seen_frontier(&self) -> Position {
        let seen = self
            .log
            .iter()
            .position(|logged| logged.mark.is_some_and(|mark| self.hidden.contains_key(&mark)));
        Position::from_u64(seen.unwrap_or(self.log.len()) as u64)
    }

    pub(crate) fn held(&self, table: &TableName) -> Result<&Held> {
        self.tables
            .get(table)
            .ok_or_else(|| Error::new(code::TABLE_MISSING, format!("there is no table {table}")))
    }

    pub(crate) fn do_effect(&mut self, effect: Effect) {
        let (Effect::Put { table, .. } | Effect::Remove { table, .. } | Effect::Clear { table }) = &effect;
        let Some(held) = self.tables.get_mut(table) else { return };
        match effect {
            Effect::Put { key, row, .. } => drop(held.rows.insert(key, row)),
            Effect::Remove { key, .. } => drop(held.rows.remove(&key)),
            Effect::Clear { .. } => held.rows.clear(),
        }
    }

    /// Works a transaction out against what is there, its own earlier writes included.
    pub(crate) fn plan(&self, writes: &[Write]) -> Result<(Vec<Effect>, Vec<LoggedChange>)> {
        let mut own: BTreeMap<(TableName, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
        let mut cleared: BTreeSet<TableName> = BTreeSet::new();
        let mut effects = Vec::new();
        let mut changes = Vec::new();
        for write in writes {
            let held = self.held(&write.table)?;
            let look = |own: &BTreeMap<(TableName, Vec<u8>), Option<Vec<u8>>>, key: &Vec<u8>| match own
                .get(&(write.table.clone(), key.clone()))
            {
                Some(row) => row.clone(),
                None if cleared.contains(&write.table) => None,
                None => held.rows.get(key).cloned(),
            };
            let mut put = |own: &mut BTreeMap<_, _>, key: Vec<u8>, row: Option<Vec<u8>>| {
                own.insert((write.table.clone(), key.clone()), row.clone());
                effects.push(match row {
                    Some(row) => Effect::Put { table: write.table.clone(), key, row },
                    None => Effect::Remove { table: write.table.clone(), key },
                });
            };
            let (op, row, old_key) = match &write.action {
                Action::Insert(row) => {
                    let row = frame(row);
                    let key = self.unlocked(held, Row::parse(&row)?)?;
                    if look(&own, &key).is_some() {
                        return Err(Error::new(code::CONSTRAINT_VIOLATED, "the key exists"));
                    }
                    put(&mut own, key, Some(row.clone()));
                    (Op::Insert, Some(row), None)
                }
                Action::Update { key, set } => {
                    let key = self.unlocked_key(held, Row::parse(&frame(key))?)?;
                    let Some(old) = look(&own, &key) else { continue };
                    let old_key = held.shape.cut_key(Row::parse(&old)?);
                    let (new, sent) = updated(held, Row::parse(&old)?, set);
                    let new_key = self.unlocked(held, Row::parse(&new)?)?;
                    let same = held.shape.table.has_key(Row::parse(&new)?, old_key.row());
                    if new_key != key {
                        if look(&own, &new_key).is_some() {
                            return Err(Error::new(code::CONSTRAINT_VIOLATED, "the key exists"));
                        }
                        put(&mut own, key, None);
                    }
                    put(&mut own, new_key, Some(new));
                    (Op::Update, Some(sent), (!same).then(|| old_key.0.into_vec()))
                }
                Action::Delete { key } => {
                    let key = self.unlocked_key(held, Row::parse(&frame(key))?)?;
                    let Some(old) = look(&own, &key) else { continue };
                    put(&mut own, key, None);
                    let old_key = held.shape.cut_key(Row::parse(&old)?);
                    (Op::Delete, None, Some(old_key.0.into_vec()))
                }
                Action::Truncate => {
                    self.unlocked_table(&write.table)?;
                    own.retain(|(table, _), _| *table != write.table);
                    cleared.insert(write.table.clone());
                    effects.push(Effect::Clear { table: write.table.clone() });
                    (Op::Truncate, None, None)
                }
            };
            changes.push(LoggedChange { table: write.table.clone(), op, row, old_key });
        }
        Ok((effects, changes))
    }

    fn unlocked(&self, held: &Held, row: Row<'_>) -> Result<Vec<u8>> {
        let mut key = Vec::new();
        held.shape.identity_of_row(row, &mut key)?;
        self.check_lock(held, key)
    }

    fn unlocked_key(&self, held: &Held, row: Row<'_>) -> Result<Vec<u8>> {
        let mut key = Vec::new();
        held.shape.key_of(row, &mut key)?;
        self.check_lock(held, key)
    }

    fn check_lock(&self, held: &Held, key: Vec<u8>) -> Result<Vec<u8>> {
        let name = &held.shape.table.name;
        let locked = self.hidden.values().flatten().any(|effect| match effect {
            Effect::Put { table, key: k, .. } | Effect::Remove { table, key: k } => {
                table == name && *k == key
            }
            Effect::Clear { table } => table == name,
        });
        if locked { Err(busy()) } else { Ok(key) }
    }

    pub(crate) fn unlocked_table(&self, name: &TableName) -> Result<()> {
        let locked = self.hidden.values().flatten().any(|effect| {
            let (Effect::Put { table, .. } | Effect::Remove { table, .. } | Effect::Clear { table }) = effect;
            table == name
        });
        if locked { Err(busy()) } else { Ok(()) }
    }
}

fn busy() -> Error {
    Error::new(code::LIMIT_REACHED, "a row is locked by a commit that is not yet seen")
}

/// The row after an update, and the row as the log has it: lazy columns that were not touched are left out.
fn updated(held: &Held, old: Row<'_>, set: &[(usize, Value<'static>)]) -> (Vec<u8>, Vec<u8>) {
    let (mut new, mut sent) = (Vec::new(), Vec::new());
    let (mut new_row, mut sent_row) = (RowWriter::new(&mut new), RowWriter::new(&mut sent));
    for (at, cell) in old.cells().enumerate() {
        match set.iter().find(|(column, _)| *column == at) {
            Some((_, value)) => {
                new_row.value(value);
                sent_row.value(value);
            }
            None => {
                new_row.cell(cell);
                // Null is never stored apart, so it is always sent.
                let left_out = held.lazy.contains(&at) && cell != Cell::Null;
                sent_row.cell(if left_out { Cell::Unchanged } else { cell });
            }
        }
    }
    new_row.finish();
    sent_row.finish();
    (new, sent)
}
