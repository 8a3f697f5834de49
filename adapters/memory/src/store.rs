//! The tables, the log and what is written to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Catalog, ChangeFeed, Checkpoint, Crawler, Examiner, Identity, Route, Sink, StateStore, Store, Stored,
};
use tidegate_core::{
    Canonical, Cell, Column, Error, FlowName, Mark, Op, Position, Result, Row, RowWriter, Shape, Table,
    TableName, Value,
};
use tokio::sync::Notify;

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

/// A store in memory. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    pub(crate) inner: Arc<Mutex<Inner>>,
    pub(crate) changed: Arc<Notify>,
    /// Leases run by this clock.
    pub(crate) started: tokio::time::Instant,
}

#[derive(Clone, Debug)]
pub(crate) struct Inner {
    pub(crate) identity: Identity,
    pub(crate) tables: BTreeMap<TableName, Held>,
    pub(crate) log: Vec<Logged>,
    /// Entries before this place of the log are gone.
    pub(crate) log_start: usize,
    next_mark: Mark,
    /// Logged transactions that readers do not see yet.
    pub(crate) hidden: BTreeMap<Mark, Vec<Effect>>,
    pub(crate) flows: BTreeMap<FlowName, FlowState>,
    pub(crate) seals: BTreeMap<FlowName, String>,
}

/// A table with its rows by the identity of their key.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) shape: Shape,
    pub(crate) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Columns that the log leaves out of an update that does not touch them.
    lazy: BTreeSet<usize>,
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
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) fence: u64,
}

/// A store as it was at a moment.
#[derive(Clone, Debug)]
pub struct Backup(Inner);

impl MemoryStore {
    /// An empty store. The name is its identity.
    pub fn new(name: &str) -> Self {
        let inner = Inner {
            identity: Identity(format!("memory:{name}")),
            tables: BTreeMap::new(),
            log: Vec::new(),
            log_start: 0,
            next_mark: 1,
            hidden: BTreeMap::new(),
            flows: BTreeMap::new(),
            seals: BTreeMap::new(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            changed: Arc::new(Notify::new()),
            started: tokio::time::Instant::now(),
        }
    }

    /// Locks the store. A panic elsewhere does not make it unusable: every change of it is whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes a table. Its rows are ordered by the canonical bytes of the key.
    pub fn create_table(&self, name: &TableName, columns: Vec<Column>, key: &[&str]) {
        let key = key.iter().filter_map(|k| columns.iter().position(|c| c.name == *k)).collect();
        let table =
            Table { name: name.clone(), native_id: 0, columns, key, rows_estimated: 0, bytes_estimated: 0 };
        self.lock().hold(Arc::new(table));
    }

    /// Makes the log leave this column out of an update that does not touch it, as PostgreSQL does for large values.
    pub fn leave_out_unchanged(&self, table: &TableName, column: usize) {
        if let Some(held) = self.lock().tables.get_mut(table) {
            held.lazy.insert(column);
        }
    }

    /// Adds a column behind the others. The rows that are there get the default, and no change tells so; without one
    /// they have null.
    ///
    /// # Errors
    /// `table-missing`, and `limit-reached` with verdict retry while a commit to the table is logged and not yet seen.
    pub fn add_column(
        &self,
        table: &TableName,
        column: Column,
        default: Option<Value<'static>>,
    ) -> Result<()> {
        let mut inner = self.lock();
        inner.held(table)?;
        inner.unlocked_table(table)?;
        let column = Column { has_default: default.is_some(), ..column };
        let value = default.unwrap_or(Value::Null);
        inner.grow(table, |columns| columns.push(column), &value);
        Ok(())
    }

    /// Commits a transaction: it is logged and seen at once. Changes nothing if any write cannot be done.
    ///
    /// # Errors
    /// `constraint-violated` for a key that exists, `table-missing`, and `limit-reached` with verdict retry if a
    /// row is locked by a commit that is logged and not yet seen.
    pub fn transact(&self, writes: &[Write]) -> Result<Mark> {
        let mark = self.log_unseen(writes)?;
        self.reveal(mark);
        Ok(mark)
    }

    /// Logs a commit that readers do not see until [`MemoryStore::reveal`]: its rows stay locked till then.
    ///
    /// # Errors
    /// As [`MemoryStore::transact`].
    pub fn log_unseen(&self, writes: &[Write]) -> Result<Mark> {
        let mut inner = self.lock();
        let (effects, changes) = inner.plan(writes)?;
        let mark = inner.next_mark;
        inner.next_mark += 1;
        inner.log.push(Logged { mark: Some(mark), changes });
        inner.hidden.insert(mark, effects);
        drop(inner);
        self.changed.notify_waiters();
        Ok(mark)
    }

    /// Lengthens the log by an entry that is no transaction, as servers do of their own accord.
    pub fn log_nothing(&self) {
        self.lock().log.push(Logged { mark: None, changes: Vec::new() });
        self.changed.notify_waiters();
    }

    /// Makes a logged commit seen.
    pub fn reveal(&self, mark: Mark) {
        let mut inner = self.lock();
        if let Some(effects) = inner.hidden.remove(&mark) {
            effects.into_iter().for_each(|effect| inner.do_effect(effect));
        }
    }

    /// The marks of commits that are logged and not yet seen.
    pub fn unseen(&self) -> Vec<Mark> {
        self.lock().hidden.keys().copied().collect()
    }

    /// Forgets the log up to now, as a server does that ran out of room.
    pub fn cut_log(&self) {
        let mut inner = self.lock();
        inner.log_start = inner.log.len();
    }

    /// A copy of everything that is here, for [`MemoryStore::restore`].
    pub fn backup(&self) -> Backup {
        Backup(self.lock().clone())
    }

    /// Becomes what it was when the copy was made, its identity too.
    pub fn restore(&self, backup: &Backup) {
        *self.lock() = backup.0.clone();
        self.changed.notify_waiters();
    }

    /// Becomes another store with the same rows, as a restored backup is.
    pub fn replace_identity(&self, name: &str) {
        self.lock().identity = Identity(format!("memory:{name}"));
    }

    /// The rows readers see, in the order of the key.
    pub fn rows(&self, table: &TableName) -> Vec<Vec<Value<'static>>> {
        let inner = self.lock();
        let Some(held) = inner.tables.get(table) else { return Vec::new() };
        held.rows.values().map(|frame| values(&held.shape, frame)).collect()
    }
}

fn values(shape: &Shape, frame: &[u8]) -> Vec<Value<'static>> {
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
        let shape = Shape { table, codec: Arc::new(Canonical) };
        let name = shape.table.name.clone();
        self.tables.entry(name).or_insert(Held { shape, rows: BTreeMap::new(), lazy: BTreeSet::new() });
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
    fn plan(&self, writes: &[Write]) -> Result<(Vec<Effect>, Vec<LoggedChange>)> {
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
                    let old_key = frame(key);
                    let key = self.unlocked_key(held, Row::parse(&old_key)?)?;
                    let Some(old) = look(&own, &key) else { continue };
                    let (new, sent) = updated(held, Row::parse(&old)?, set);
                    let new_key = self.unlocked(held, Row::parse(&new)?)?;
                    let moved = new_key != key;
                    if moved {
                        if look(&own, &new_key).is_some() {
                            return Err(Error::new(code::CONSTRAINT_VIOLATED, "the key exists"));
                        }
                        put(&mut own, key, None);
                    }
                    put(&mut own, new_key, Some(new));
                    (Op::Update, Some(sent), moved.then_some(old_key))
                }
                Action::Delete { key } => {
                    let old_key = frame(key);
                    let key = self.unlocked_key(held, Row::parse(&old_key)?)?;
                    if look(&own, &key).is_none() {
                        continue;
                    }
                    put(&mut own, key, None);
                    (Op::Delete, None, Some(old_key))
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

    fn unlocked_table(&self, name: &TableName) -> Result<()> {
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

#[async_trait]
impl Store for MemoryStore {
    fn location(&self) -> String {
        self.lock().identity.0.clone()
    }

    async fn catalog(&self) -> Result<Arc<dyn Catalog>> {
        Ok(Arc::new(self.clone()))
    }

    async fn crawler(&self) -> Result<Box<dyn Crawler>> {
        Ok(Box::new(crate::crawler::MemoryCrawler(self.clone())))
    }

    async fn change_feed(
        &self,
        _: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Box<dyn ChangeFeed>> {
        Ok(Box::new(crate::change_feed::MemoryFeed::open(self.clone(), tables, source, from)?))
    }

    async fn sink(&self, flow: &FlowName, routes: &[Route]) -> Result<Box<dyn Sink>> {
        Ok(Box::new(crate::sink::MemorySink::new(self.clone(), flow, routes)))
    }

    async fn examiner(&self) -> Result<Arc<dyn Examiner>> {
        Ok(Arc::new(self.clone()))
    }

    async fn state(&self) -> Result<Arc<dyn StateStore>> {
        Ok(Arc::new(self.clone()))
    }
}
