//! The source under a random workload, and the ledger that knows the right answer.
//!
//! The ledger shares no code with the store: it keeps every acknowledged write in the order of the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use tidegate_core::{Column, Mark, TableName, Type, Value};
use tidegate_memory::{MemoryStore, Write};

use crate::made::{Turn, expected};

/// Keys are few, so that everything happens to the same rows.
const KEYS: i64 = 12;

/// A row as the ledger has it: a small value, a large one that updates may leave out of the log, and one in a column
/// that the table gets while the flow runs.
pub(crate) type Row = (Option<i64>, Option<String>, Option<i64>);

/// A key as the target has it: its number, and in which of its equal forms it was written.
type Written = (i64, bool);

/// How often rare things happened. A proof counts only if each did.
pub(crate) type Coverage = BTreeMap<&'static str, u64>;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) coverage: Coverage,
    source: MemoryStore,
    tables: Vec<TableName>,
    ledger: Vec<BTreeMap<i64, Row>>,
    /// Tables that got their late column, and after how many more writes the others are to get theirs.
    grown: Vec<bool>,
    grows_in: Vec<Option<usize>>,
    /// How rows are turned on their way to the target.
    pub(crate) turn: Option<Turn>,
    /// Whether a key has two forms that are equal in the source and differ in the target, as 1 and 1.0 of a numeric do
    /// where they are text; and which keys are in the second.
    pub(crate) has_forms: bool,
    forms: Rng,
    long: Vec<BTreeMap<i64, bool>>,
    /// Whether the small values are unique in the target: rows exchange them.
    pub(crate) unique: bool,
    /// Whether the target is behind a broker.
    pub(crate) carried: bool,
    writes_left: usize,
    pub(crate) faults_left: usize,
    unseen: Vec<Mark>,
    version: i64,
}

/// The world, shared by everything that makes time pass in it.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    pub(crate) fn new(seed: u64, source: &MemoryStore) -> Self {
        let mut rng = Rng::with_seed(seed);
        let tables: Vec<_> = (0..rng.usize(1..=2)).map(|n| TableName::new("", format!("t{n}"))).collect();
        // By itself, so that a seed means the same history with and without them.
        let mut forms = Rng::with_seed(!seed);
        let has_forms = forms.u8(0..3) == 0;
        let key =
            if has_forms { Type::Decimal { precision: None, scale: None } } else { Type::Int { bits: 64 } };
        for table in &tables {
            let columns = vec![
                Column::new("id", key.clone()),
                Column::new("small", Type::Int { bits: 64 }),
                Column::new("large", Type::Text),
            ];
            source.create_table(table, columns, &["id"]);
            source.leave_out_unchanged(table, 2);
        }
        let turn = match rng.u8(0..8) {
            0 => Some(Turn::Filter),
            1 if tables.len() > 1 => Some(Turn::Fold),
            _ => None,
        };
        let mut world = Self {
            turn,
            has_forms,
            forms,
            long: tables.iter().map(|_| BTreeMap::new()).collect(),
            unique: turn.is_none() && rng.bool(),
            carried: rng.u8(0..6) == 0,
            coverage: Coverage::new(),
            source: source.clone(),
            ledger: tables.iter().map(|_| BTreeMap::new()).collect(),
            grown: vec![false; tables.len()],
            grows_in: vec![None; tables.len()],
            tables,
            writes_left: 0,
            faults_left: rng.usize(0..6),
            unseen: Vec::new(),
            version: 0,
            rng,
        };
        // What is there before the flow begins.
        world.writes_left = world.rng.usize(0..30);
        while world.writes_left > 0 {
            world.write();
        }
        world.writes_left = world.rng.usize(5..60);
        for table in 0..world.tables.len() {
            world.grows_in[table] = world.rng.bool().then(|| world.rng.usize(0..40));
        }
        world
    }

    pub(crate) fn tables(&self) -> &[TableName] {
        &self.tables
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    /// Time passes: others write, and commits become seen.
    pub(crate) fn step(&mut self) {
        for _ in 0..self.rng.usize(0..3) {
            if self.writes_left > 0 {
                self.grow();
                self.write();
            }
        }
        if self.rng.u8(0..6) == 0 {
            self.source.log_nothing();
        }
        if !self.unseen.is_empty() && (self.rng.u8(0..4) == 0 || self.writes_left == 0) {
            let mark = self.unseen.swap_remove(self.rng.usize(..self.unseen.len()));
            self.source.reveal(mark);
        }
    }

    /// Tables get a column when their time has come, some with a default.
    fn grow(&mut self) {
        for table in 0..self.tables.len() {
            match &mut self.grows_in[table] {
                Some(0) => {}
                Some(left) => {
                    *left -= 1;
                    continue;
                }
                None => continue,
            }
            // What a transform does with a default that no change tells is not for a ledger to know.
            let default = (self.turn.is_none() && self.rng.u8(0..4) == 0).then_some(-1);
            let column = Column::new("late", Type::Int { bits: 64 });
            // A table with commits that are not seen yet is locked: later.
            if self.source.add_column(&self.tables[table], column, default.map(Value::Int)).is_err() {
                continue;
            }
            self.grows_in[table] = None;
            self.grown[table] = true;
            self.ledger[table].values_mut().for_each(|row| row.2 = default);
            self.count(if default.is_some() { "column with a default added" } else { "column added" });
        }
    }

    fn write(&mut self) {
        self.writes_left -= 1;
        let table = self.rng.usize(..self.tables.len());
        let (mut rows, long) = (self.ledger[table].clone(), self.long[table].clone());
        let mut writes = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            if self.has_forms && self.forms.u8(0..4) == 0 {
                writes.extend(self.replace(table, &mut rows));
            } else if self.unique && self.rng.u8(0..3) == 0 {
                writes.extend(self.exchange(table, &mut rows));
            } else {
                writes.push(self.one_write(table, &mut rows));
            }
        }
        let logged = if self.rng.u8(0..3) == 0 {
            let logged = self.source.log_unseen(&writes);
            if let Ok(mark) = &logged {
                self.unseen.push(*mark);
                self.count("commit logged before it was seen");
            }
            logged
        } else {
            self.source.transact(&writes)
        };
        // A row locked by a commit not yet seen: the writer gives up. Any other refusal is a fault of this model.
        match logged {
            Ok(_) => self.ledger[table] = rows,
            Err(e) => {
                assert_eq!(e.code().name(), "limit-reached", "the model's writer made a bad write: {e}");
                self.long[table] = long;
            }
        }
    }

    /// A key as it is written now.
    fn key(&self, table: usize, id: i64) -> Value<'static> {
        match self.long[table].get(&id) {
            Some(true) => Value::Decimal(format!("{id}.0").into()),
            Some(false) => Value::Decimal(id.to_string().into()),
            None => Value::Int(id),
        }
    }

    /// A key in one of its forms, from now on.
    fn new_key(&mut self, table: usize, id: i64) -> Value<'static> {
        if self.has_forms {
            let is_long = self.forms.bool();
            self.long[table].insert(id, is_long);
        }
        self.key(table, id)
    }

    /// A row that goes and comes again, or is told to have another key; that may be an equal one.
    fn replace(&mut self, table: usize, rows: &mut BTreeMap<i64, Row>) -> Vec<Write> {
        let ids: Vec<i64> = rows.keys().copied().collect();
        let Some(id) = ids.get(self.forms.usize(..ids.len().max(1))).copied() else { return Vec::new() };
        let name = self.tables[table].clone();
        let (was, key) = (self.key(table, id), self.new_key(table, id));
        if was != key {
            self.count("key replaced by an equal one");
        }
        self.version += 1;
        let version = self.version;
        if self.forms.bool() {
            let row = rows.remove(&id).unwrap_or_default();
            rows.insert(id, (Some(version), row.1, row.2));
            return vec![Write::update(&name, [was], [(0, key), (1, Value::Int(version))])];
        }
        let large = format!("large {version}");
        let grown = self.grown[table];
        rows.insert(id, (Some(version), Some(large.clone()), grown.then_some(version)));
        let late = grown.then_some(Value::Int(version));
        let row = [key, Value::Int(version), Value::Text(large.into())];
        vec![Write::delete(&name, [was]), Write::insert(&name, row.into_iter().chain(late))]
    }

    /// Two rows, of which the first gets the small value of the second, and that another one, or the first's.
    fn exchange(&mut self, table: usize, rows: &mut BTreeMap<i64, Row>) -> Vec<Write> {
        let ids: Vec<i64> = rows.keys().copied().collect();
        if ids.len() < 2 {
            return Vec::new();
        }
        let name = self.tables[table].clone();
        let one = ids[self.rng.usize(..ids.len())];
        let other = ids[self.rng.usize(..ids.len())];
        if one == other {
            return Vec::new();
        }
        self.count("unique values exchanged");
        self.version += 1;
        let taken = rows[&other].0;
        let given = if self.rng.bool() { rows[&one].0 } else { Some(self.version) };
        let mut writes = Vec::new();
        for (id, small) in [(one, taken), (other, given)] {
            if let Some(row) = rows.get_mut(&id) {
                row.0 = small;
            }
            let small = small.map_or(Value::Null, Value::Int);
            writes.push(Write::update(&name, [self.key(table, id)], [(1, small)]));
        }
        writes
    }

    fn one_write(&mut self, table: usize, rows: &mut BTreeMap<i64, Row>) -> Write {
        let name = self.tables[table].clone();
        let id = self.rng.i64(0..KEYS);
        self.version += 1;
        let version = self.version;
        let small = Value::Int(version);
        let large = format!("large {version}");
        let grown = self.grown[table];
        let Some(row) = rows.get(&id).cloned() else {
            rows.insert(id, (Some(version), Some(large.clone()), grown.then_some(version)));
            let late = grown.then(|| small.clone());
            let row = [self.new_key(table, id), small, Value::Text(large.into())];
            return Write::insert(&name, row.into_iter().chain(late));
        };
        let free: Vec<i64> = (0..KEYS).filter(|id| !rows.contains_key(id)).collect();
        let key = self.key(table, id);
        match self.rng.u8(0..20) {
            // A table that is folded into another may not be truncated: that stops the other by name.
            0 if table == 0 || self.turn != Some(Turn::Fold) => {
                self.count("truncate");
                rows.clear();
                Write::truncate(&name)
            }
            1..=5 => {
                rows.remove(&id);
                Write::delete(&name, [key])
            }
            6..=8 if !free.is_empty() => {
                let to = free[self.rng.usize(..free.len())];
                rows.remove(&id);
                rows.insert(to, (Some(version), row.1, row.2));
                self.count("key change that leaves a column out");
                Write::update(&name, [key], [(0, self.new_key(table, to)), (1, small)])
            }
            9..=13 => {
                rows.insert(id, (Some(version), row.1, row.2));
                Write::update(&name, [key], [(1, small)])
            }
            14 => {
                rows.insert(id, (None, None, row.2));
                Write::update(&name, [key], [(1, Value::Null), (2, Value::Null)])
            }
            15..=17 if grown => {
                rows.insert(id, (row.0, row.1, Some(version)));
                Write::update(&name, [key], [(3, small)])
            }
            _ => {
                rows.insert(id, (row.0, Some(large.clone()), row.2));
                Write::update(&name, [key], [(2, Value::Text(large.into()))])
            }
        }
    }

    /// Ends all that others do, and what they began.
    pub(crate) fn settle(&mut self) {
        self.writes_left = 0;
        self.faults_left = 0;
        for mark in std::mem::take(&mut self.unseen) {
            self.source.reveal(mark);
        }
    }

    /// Compares the source with the ledger.
    pub(crate) fn compare_source(&self, store: &MemoryStore) -> Difference {
        self.compare(store, &self.ledger)
    }

    /// Compares the target with what is to be made of the ledger.
    pub(crate) fn compare_target(&self, store: &MemoryStore) -> Difference {
        self.compare(store, &expected(self.turn, &self.ledger))
    }

    /// Rows lost, not there in the ledger, and different.
    fn compare(&self, store: &MemoryStore, ledger: &[BTreeMap<i64, Row>]) -> Difference {
        let mut found = Difference::default();
        for ((name, expected), long) in self.tables.iter().zip(ledger).zip(&self.long) {
            let written = |id: &i64| (*id, long.get(id).copied().unwrap_or(false));
            let rows: BTreeMap<Written, Row> = store.rows(name).iter().filter_map(|row| read(row)).collect();
            for (id, row) in expected {
                match rows.get(&written(id)) {
                    None => found.lost += 1,
                    Some(other) if other != row => found.diverged += 1,
                    Some(_) => {}
                }
            }
            let is_extra = |key: &&Written| !expected.contains_key(&key.0) || written(&key.0) != **key;
            found.duplicated += rows.keys().filter(is_extra).count() as u64;
        }
        found
    }
}

fn read(row: &[Value<'static>]) -> Option<(Written, Row)> {
    let int = |value: &Value<'_>| if let Value::Int(v) = value { Some(*v) } else { None };
    let text = |value: &Value<'_>| if let Value::Text(v) = value { Some(v.to_string()) } else { None };
    let key = match &row[0] {
        Value::Decimal(digits) => match digits.strip_suffix(".0") {
            Some(number) => (number.parse().ok()?, true),
            None => (digits.parse().ok()?, false),
        },
        number => (int(number)?, false),
    };
    Some((key, (int(&row[1]), text(&row[2]), row.get(3).and_then(int))))
}

/// What a comparison with the ledger found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) diverged: u64,
}
