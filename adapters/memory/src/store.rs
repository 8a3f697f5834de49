//! The store: its tables, its log, and the roles it plays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tidegate_core::port::{Catalog, ChangeFeed, Crawler, Examiner, Identity, Route, Sink, StateStore, Store};
use tidegate_core::{Column, FlowName, Mark, Position, Result, Table, TableName, Value};
use tokio::sync::Notify;

use crate::inner::{Inner, Logged, Write, values};

/// A store in memory. Clones are handles to the same store.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    pub(crate) inner: Arc<Mutex<Inner>>,
    pub(crate) changed: Arc<Notify>,
    /// Leases run by this clock.
    pub(crate) started: tokio::time::Instant,
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
            made: 0,
            log: Vec::new(),
            log_start: 0,
            next_mark: 1,
            hidden: BTreeMap::new(),
            flows: BTreeMap::new(),
            fences: 0,
            timers_put: 0,
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

    /// Removes a table with its rows.
    pub fn drop_table(&self, name: &TableName) {
        self.lock().tables.remove(name);
    }

    /// Makes the log leave this column out of an update that does not touch it, as PostgreSQL does for large values.
    pub fn leave_out_unchanged(&self, table: &TableName, column: usize) {
        if let Some(held) = self.lock().tables.get_mut(table) {
            held.lazy.insert(column);
        }
    }

    /// Makes a unique index over these columns, for rows that have a value in each. A sink keeps to it; a transaction of
    /// the store itself is taken for one that does.
    pub fn create_unique(&self, table: &TableName, columns: &[&str]) {
        if let Some(held) = self.lock().tables.get_mut(table) {
            let places = columns.iter().filter_map(|name| held.shape.table.position(name)).collect();
            held.unique.push(places);
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
