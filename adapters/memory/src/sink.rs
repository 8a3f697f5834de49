//! Takes rows and changes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{
    Applied, Batch, Checkpoint, Commit, Exclusion, Opened, RangeProgress, Route, Sink, TableBatch,
};
use tidegate_core::{Cell, Error, FlowName, Key, Result, Row, RowWriter, Shape, TableName};

use crate::inner::{Effect, FlowState, Held, Inner, frame};
use crate::store::MemoryStore;

#[derive(Debug)]
pub(crate) struct MemorySink {
    store: MemoryStore,
    flow: FlowName,
    routes: Vec<Route>,
    /// The number of each route's table in the checkpoint.
    numbers: Vec<usize>,
    /// Which table each route found in the target.
    found: Vec<Option<u64>>,
    fence: u64,
}

impl MemorySink {
    pub(crate) fn new(store: MemoryStore, flow: &FlowName, routes: &[Route]) -> Self {
        Self {
            store,
            flow: flow.clone(),
            routes: routes.to_vec(),
            numbers: Vec::new(),
            found: Vec::new(),
            fence: 0,
        }
    }

    /// Keeps which tables were found for those that the flow is new to, and excludes those that are not what they were.
    fn identify(&self, state: &mut FlowState) {
        let FlowState { identities, checkpoint, .. } = state;
        for ((route, found), number) in self.routes.iter().zip(&self.found).zip(&self.numbers) {
            let name = &route.shape.table.name;
            if let Some(found) = found {
                identities.entry(name.clone()).or_insert(*found);
            }
            let Some(Checkpoint { excluded, .. }) = checkpoint else { continue };
            let is_there = found.is_some() && identities.get(name) == found.as_ref();
            if !is_there && excluded.iter().all(|(table, _)| table != number) {
                excluded.push((*number, Exclusion::Failed(route.table_missing().line())));
            }
        }
    }

    /// Whether a table of the target is the one that the flow writes to, or begins to write to with this commit.
    fn is_there(&self, inner: &Inner, table: usize, commit: Option<&Commit>) -> bool {
        let route = &self.routes[table];
        let known = if commit.is_some_and(|commit| commit.forget.contains(&table)) {
            self.found[table]
        } else {
            let state = inner.flows.get(&self.flow);
            state.and_then(|state| state.identities.get(&route.shape.table.name).copied())
        };
        inner.tables.get(&route.target.name).is_some_and(|held| Some(held.id) == known)
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let mut inner = self.store.lock();
        inner.fences += 1;
        self.fence = inner.fences;
        let found = |route: &Route| inner.tables.get(&route.target.name).map(|held| held.id);
        self.found = self.routes.iter().map(found).collect();
        let state = inner.flows.entry(self.flow.clone()).or_default();
        state.fence = self.fence;
        for route in &self.routes {
            let name = &route.shape.table.name;
            if !state.tables.contains(name) {
                state.tables.push(name.clone());
            }
        }
        let number = |route: &Route| state.tables.iter().position(|name| *name == route.shape.table.name);
        self.numbers = self.routes.iter().filter_map(number).collect();
        self.identify(state);
        Ok(match &state.checkpoint {
            Some(checkpoint) => {
                let place = |number| self.numbers.iter().position(|known| *known == number);
                Opened::Resumed(renumbered(checkpoint, place))
            }
            None => {
                state.checkpoint = Some(renumbered(first, |place| self.numbers.get(place).copied()));
                Opened::New
            }
        })
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let mut inner = self.store.lock();
        let state = inner.flows.entry(self.flow.clone()).or_default();
        if state.fence != self.fence {
            return Err(Error::new(code::LEASE_LOST, "another runner has taken this flow over"));
        }
        // Everything is worked out before anything is done, so that an error leaves nothing half done.
        let mut applied = Applied::default();
        let mut effects = Vec::new();
        for part in &batch.tables {
            if !self.is_there(&inner, part.table, commit) {
                return Err(self.routes[part.table].table_missing());
            }
            plan(&inner, &self.routes[part.table], part, &mut effects, &mut applied)?;
        }
        effects.into_iter().for_each(|effect| inner.do_effect(effect));
        let state = inner.flows.entry(self.flow.clone()).or_default();
        for table in commit.into_iter().flat_map(|commit| &commit.forget) {
            let name = &self.routes[*table].shape.table.name;
            match self.found[*table] {
                Some(found) => drop(state.identities.insert(name.clone(), found)),
                None => drop(state.identities.remove(name)),
            }
        }
        if let Some(checkpoint) = &mut state.checkpoint {
            if let Some(commit) = commit {
                advance(checkpoint, &numbered(commit, &self.numbers));
            }
            for (place, key) in &applied.holes {
                let hole = (self.numbers[*place], key.clone());
                if !checkpoint.holes.contains(&hole) {
                    checkpoint.holes.push(hole);
                }
            }
        }
        Ok(applied)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// A checkpoint with its tables numbered anew; what is of none of them is left out.
fn renumbered(checkpoint: &Checkpoint, number: impl Fn(usize) -> Option<usize>) -> Checkpoint {
    let Checkpoint { ranges, excluded, holes, .. } = checkpoint;
    let range = |range: &RangeProgress| Some(RangeProgress { table: number(range.table)?, ..range.clone() });
    Checkpoint {
        ranges: ranges.iter().filter_map(range).collect(),
        excluded: excluded.iter().filter_map(|(at, why)| Some((number(*at)?, why.clone()))).collect(),
        holes: holes.iter().filter_map(|(at, key)| Some((number(*at)?, key.clone()))).collect(),
        ..checkpoint.clone()
    }
}

/// A commit with its tables numbered as in the checkpoint.
fn numbered(commit: &Commit, numbers: &[usize]) -> Commit {
    let Commit { position, replay, ranges, forget, exclude, filled } = commit.clone();
    let range = |range: RangeProgress| RangeProgress { table: numbers[range.table], ..range };
    Commit {
        position,
        replay,
        ranges: ranges.into_iter().map(range).collect(),
        forget: forget.into_iter().map(|at| numbers[at]).collect(),
        exclude: exclude.into_iter().map(|(at, why)| (numbers[at], why)).collect(),
        filled: filled.into_iter().map(|(at, key)| (numbers[at], key)).collect(),
    }
}

/// Puts a commit into a checkpoint.
fn advance(checkpoint: &mut Checkpoint, commit: &Commit) {
    if let Some(position) = &commit.position {
        checkpoint.position = position.clone();
    }
    if let Some(replay) = &commit.replay {
        checkpoint.replay = replay.clone();
    }
    checkpoint.ranges.retain(|range| !commit.forget.contains(&range.table));
    let is_replaced = |table: &usize| commit.exclude.iter().any(|(excluded, _)| excluded == table);
    checkpoint.excluded.retain(|(table, _)| !commit.forget.contains(table) && !is_replaced(table));
    checkpoint.holes.retain(|hole| !commit.forget.contains(&hole.0) && !commit.filled.contains(hole));
    checkpoint.excluded.extend(commit.exclude.iter().cloned());
    for range in &commit.ranges {
        match checkpoint.ranges.iter_mut().find(|r| r.table == range.table && r.range == range.range) {
            Some(known) => *known = range.clone(),
            None => checkpoint.ranges.push(range.clone()),
        }
    }
}

/// A row in the canonical encoding, with what is there for cells that were not sent.
///
/// Columns that only the target has stay as they are, null in a new row.
fn canonical(shape: &Shape, held: &Held, row: Row<'_>, old: Option<Row<'_>>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for (at, cell) in row.cells().enumerate() {
        let value = shape.value(at, cell).map_err(|error| error.with("table", &held.shape.table.name))?;
        match (value, old) {
            (Some(value), _) => writer.value(&value),
            (None, Some(old)) => writer.cell(old.cell(at)),
            (None, None) => {
                return Err(Error::new(code::ROW_HOLE, "a full row has a cell that was not sent")
                    .with("table", &held.shape.table.name));
            }
        }
    }
    for at in row.len()..held.shape.table.columns.len() {
        writer.cell(old.map_or(Cell::Null, |old| old.cell(at)));
    }
    writer.finish();
    debug_assert!(Row::parse(&out).is_ok_and(|row| row.cells().all(|cell| cell != Cell::Unchanged)));
    Ok(out)
}

fn plan(
    inner: &Inner,
    route: &Route,
    part: &TableBatch,
    effects: &mut Vec<Effect>,
    applied: &mut Applied,
) -> Result<()> {
    let shape = &route.shape;
    let table = route.target.name.clone();
    let held = inner.held(&table)?;
    let identity = |row: Row<'_>| -> Result<Vec<u8>> {
        let mut values = Vec::new();
        for (&at, cell) in shape.table.key.iter().zip(row.cells()) {
            let value = shape.value(at, cell).map_err(|error| error.with("table", &table))?;
            values.extend(value.map(tidegate_core::Value::into_owned));
        }
        let mut key = Vec::new();
        held.shape.key_of(Row::parse(&frame(&values))?, &mut key)?;
        Ok(key)
    };
    let mut draft = Draft::new(held, &table, effects);
    if part.truncate {
        draft.clear();
    }
    for key in part.deletes.iter() {
        draft.remove(&identity(key)?);
    }
    let mut upserts = Vec::with_capacity(part.upserts.len());
    for row in part.upserts.iter() {
        let cut = shape.cut_key(row);
        let key = identity(cut.row())?;
        upserts.push((cut, key, canonical(shape, held, row, None)?));
    }
    // What they were before keeps nobody out.
    upserts.iter().for_each(|(_, key, _)| draft.make_room(key));
    for row in part.updates.iter() {
        let cut: Key = shape.cut_key(row);
        let key = identity(cut.row())?;
        let is_written = match held.rows.get(&key) {
            Some(old) if !part.truncate => {
                draft.put(key, canonical(shape, held, row, Some(Row::parse(old)?))?)
            }
            _ => part.crawling,
        };
        if !is_written {
            applied.holes.push((part.table, cut));
        }
    }
    for (cut, key, row) in upserts {
        if !draft.put(key, row) {
            applied.holes.push((part.table, cut));
        }
    }
    Ok(())
}

/// What is to be done to a table, and what its rows would be then.
struct Draft<'a> {
    table: &'a TableName,
    unique: &'a [Vec<usize>],
    /// Not kept where nothing is unique beside the key.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    effects: &'a mut Vec<Effect>,
}

impl<'a> Draft<'a> {
    fn new(held: &'a Held, table: &'a TableName, effects: &'a mut Vec<Effect>) -> Self {
        let rows = if held.unique.is_empty() { BTreeMap::new() } else { held.rows.clone() };
        Self { table, unique: &held.unique, rows, effects }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.effects.push(Effect::Clear { table: self.table.clone() });
    }

    fn remove(&mut self, key: &[u8]) {
        self.rows.remove(key);
        self.effects.push(Effect::Remove { table: self.table.clone(), key: key.to_vec() });
    }

    fn make_room(&mut self, key: &[u8]) {
        if !self.unique.is_empty() {
            self.remove(key);
        }
    }

    /// Puts a row in place; false, with no row of the key, if another one keeps it out.
    fn put(&mut self, key: Vec<u8>, row: Vec<u8>) -> bool {
        let is_rival = |(other, held): (&Vec<u8>, &Vec<u8>)| {
            *other != key && self.unique.iter().any(|places| is_same(places, &row, held))
        };
        if self.rows.iter().any(is_rival) {
            self.remove(&key);
            return false;
        }
        if !self.unique.is_empty() {
            self.rows.insert(key.clone(), row.clone());
        }
        self.effects.push(Effect::Put { table: self.table.clone(), key, row });
        true
    }
}

/// Whether two rows have the same values in these columns, none of them null.
fn is_same(places: &[usize], one: &[u8], other: &[u8]) -> bool {
    let (Ok(one), Ok(other)) = (Row::parse(one), Row::parse(other)) else { return false };
    places.iter().all(|at| one.cell(*at) != Cell::Null && one.cell(*at) == other.cell(*at))
}
