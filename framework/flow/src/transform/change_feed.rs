//! Turns changes of the source's tables into changes of the tables that travel.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Crawler, Progress};
use tidegate_core::{Change, Changes, Error, Key, Mark, Op, Position, Result, Row, Rows, Table};

use super::Transformed;
use super::making::Making;
use crate::cut::cut;
use crate::plant::{self, Bug};

/// How many transactions are remembered without looking whether they are seen.
const UNSEEN_MAX: usize = 10_000;

/// Bytes of rows that are read again at a time, about.
const REREAD_BYTES: usize = 8 << 20;

/// How long to wait before looking again whether a logged commit is seen.
const SEEN_WAIT: Duration = Duration::from_millis(10);

/// What a table of the source is to a table that travels.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// What it is made from.
    Root(usize),
    /// One of its joins.
    Join(usize, usize),
}

pub(super) struct MadeFeed {
    store: Transformed,
    inner: Box<dyn ChangeFeed>,
    crawler: Option<Box<dyn Crawler>>,
    makings: Vec<Arc<Making>>,
    /// Transactions delivered that no read is known to show. A later change may be shown before an earlier one is,
    /// and what is read for it must not bring back what the earlier one took away.
    unseen: Vec<Mark>,
    /// By the place of the source's table in the inner feed.
    parts: Vec<Vec<Part>>,
    /// What was delivered, in pieces, and is not turned yet: kept here, so that a dropped call loses nothing.
    raw: VecDeque<Changes>,
    /// How far the feed is when all of it is turned, and how far it is now.
    pending: Option<Progress>,
    told: Position,
    /// Bytes of a row that was made, by making, as the last that were read again had them.
    row_bytes: Vec<usize>,
}

/// Rows that were read again, made, by table and identity; `None` where there is no row any more.
#[derive(Default)]
struct Reread {
    rows: Vec<Rows>,
    places: HashMap<(usize, Vec<u8>), usize>,
}

impl Reread {
    fn row(&self, making: usize, identity: &[u8]) -> Option<Row<'_>> {
        self.places.get(&(making, identity.to_vec())).map(|at| self.rows[making].row(*at))
    }
}

impl MadeFeed {
    pub(super) fn new(
        store: Transformed,
        inner: Box<dyn ChangeFeed>,
        makings: Vec<Arc<Making>>,
        sources: &[Arc<Table>],
        from: &Position,
    ) -> Self {
        let parts_of = |source: &Arc<Table>| {
            let mut parts = Vec::new();
            for (at, making) in makings.iter().enumerate() {
                if making.source.table.name == source.name {
                    parts.push(Part::Root(at));
                }
                for (join, joined) in making.joins.iter().enumerate() {
                    if joined.shape.table.name == source.name {
                        parts.push(Part::Join(at, join));
                    }
                }
            }
            parts
        };
        let parts = sources.iter().map(parts_of).collect();
        Self {
            store,
            inner,
            crawler: None,
            row_bytes: makings.iter().map(|making| making.row_bytes_estimated()).collect(),
            makings,
            parts,
            unseen: Vec::new(),
            raw: VecDeque::new(),
            pending: None,
            told: from.clone(),
        }
    }

    /// Whether the row of a change has to be read again to be made.
    fn is_reread(&self, at: usize, row: &Row<'_>) -> bool {
        let making = &self.makings[at];
        making.folds() || making.needs_whole_rows() && row.is_partial()
    }

    /// Bytes of the rows that have to be read again for a change, about.
    fn weight(&self, change: &Change<'_>) -> usize {
        let of_part = |part: &Part| match *part {
            Part::Root(at) => {
                change.row.filter(|row| self.is_reread(at, row)).map_or(0, |_| self.row_bytes[at])
            }
            Part::Join(at, _) => self.row_bytes[at],
        };
        self.parts[change.table].iter().map(of_part).sum()
    }

    /// The keys whose rows have to be read again for a change.
    fn keys(&self, change: &Change<'_>, part: Part) -> Vec<(usize, Key)> {
        match part {
            Part::Root(at) => {
                let making = &self.makings[at];
                change
                    .row
                    .filter(|row| self.is_reread(at, row))
                    .map(|row| (at, making.source.cut_key(row)))
                    .into_iter()
                    .collect()
            }
            Part::Join(at, join) => {
                let joined = &self.makings[at].joins[join];
                let old = change.old_key.map(|key| joined.other_key(key));
                let new = change.row.map(|row| joined.other_key_of_row(row));
                old.into_iter().chain(new).map(|key| (at, key)).collect()
            }
        }
    }

    /// Reads what the changes do not tell, at an instant that shows them all.
    async fn read_again(&mut self) -> Result<Reread> {
        let mut wanted: Vec<HashMap<Vec<u8>, Key>> = vec![HashMap::new(); self.makings.len()];
        let mut found = Reread { rows: vec![Rows::new(); self.makings.len()], ..Reread::default() };
        let Some(raw) = self.raw.front() else { return Ok(found) };
        let begins = self.unseen.len();
        for transaction in raw.transactions() {
            if self.unseen.get(begins..).and_then(<[_]>::last) != Some(&transaction.mark) {
                self.unseen.push(transaction.mark);
            }
            for change in raw.of(transaction) {
                for part in &self.parts[change.table] {
                    for (at, key) in self.keys(&change, *part) {
                        let mut identity = Vec::new();
                        self.makings[at].source.key_of(key.row(), &mut identity)?;
                        wanted[at].insert(identity, key);
                    }
                }
            }
        }
        let again = wanted.iter().any(|wanted| !wanted.is_empty());
        if !again && self.unseen.len() <= UNSEEN_MAX {
            return Ok(found);
        }
        let crawler = match &mut self.crawler {
            Some(crawler) => crawler,
            none => none.insert(self.store.inner.crawler().await?),
        };
        loop {
            let as_of = crawler.as_of().await?;
            self.unseen.retain(|mark| !as_of.shows(*mark));
            if self.unseen.is_empty() || !again || plant::is(Bug::MadeTooEarly) {
                break;
            }
            self.store.clock.sleep(SEEN_WAIT).await;
        }
        for (at, wanted) in wanted.iter().enumerate().filter(|(_, wanted)| !wanted.is_empty()) {
            let keys: Vec<Key> = wanted.values().cloned().collect();
            let making = &self.makings[at];
            making.fetch(crawler.as_mut(), &keys, &mut found.rows[at]).await?;
            if let Some(bytes) = found.rows[at].bytes().len().checked_div(found.rows[at].len()) {
                self.row_bytes[at] = bytes;
            }
            for (place, row) in found.rows[at].iter().enumerate() {
                let mut identity = Vec::new();
                making.made.identity_of_row(row, &mut identity)?;
                found.places.insert((at, identity), place);
            }
        }
        Ok(found)
    }

    fn turn(&self, raw: &Changes, found: &Reread, out: &mut Changes) -> Result<()> {
        let mut made = Rows::new();
        let mut pushed = HashSet::new();
        for transaction in raw.transactions() {
            pushed.clear();
            for change in raw.of(transaction) {
                for part in &self.parts[change.table] {
                    match *part {
                        Part::Root(at) => {
                            pushed.clear();
                            self.turn_root(at, &change, found, &mut made, out)?;
                        }
                        Part::Join(at, _) if change.op == Op::Truncate => {
                            let table = &self.makings[at].source.table.name;
                            let text = "a table that is folded into others was truncated";
                            return Err(Error::new(code::TRANSFORM_FAILED, text)
                                .with("table", table)
                                .hint(format!("tidegate migrate recopy --table {table}")));
                        }
                        Part::Join(..) => {
                            for (at, key) in self.keys(&change, *part) {
                                // What many changes of a transaction are folded into comes once: it is the same row.
                                if pushed.insert((at, key.clone())) {
                                    self.push_found(at, key.row(), None, found, out)?;
                                }
                            }
                        }
                    }
                }
            }
            out.end(
                transaction.mark,
                transaction.position.clone(),
                transaction.committed_at,
                transaction.ends,
            );
        }
        Ok(())
    }

    /// A change of the table that another is made from.
    fn turn_root(
        &self,
        at: usize,
        change: &Change<'_>,
        found: &Reread,
        made: &mut Rows,
        out: &mut Changes,
    ) -> Result<()> {
        let making = &self.makings[at];
        let Some(row) = change.row else {
            out.push_rows(at, change.op, None, change.old_key);
            return Ok(());
        };
        if making.is_plain() {
            out.push_rows(at, change.op, Some(row), change.old_key);
            return Ok(());
        }
        if !self.keys(change, Part::Root(at)).is_empty() {
            let key = making.source.cut_key(row);
            return self.push_found(at, key.row(), change.old_key, found, out);
        }
        made.clear();
        if making.make(row, &[], made)? {
            out.push_rows(at, change.op, Some(made.row(0)), change.old_key);
            return Ok(());
        }
        // It is left out; what it was before may not have been.
        if let Some(old) = change.old_key {
            out.push_rows(at, Op::Delete, None, Some(old));
        } else if change.op == Op::Update && !plant::is(Bug::FilterForgetsRows) {
            out.push_rows(at, Op::Delete, None, Some(making.source.cut_key(row).row()));
        }
        Ok(())
    }

    /// The row as it was read again, or its deletion.
    fn push_found(
        &self,
        at: usize,
        key: Row<'_>,
        old: Option<Row<'_>>,
        found: &Reread,
        out: &mut Changes,
    ) -> Result<()> {
        let mut identity = Vec::new();
        self.makings[at].source.key_of(key, &mut identity)?;
        match found.row(at, &identity) {
            Some(row) => out.push_rows(at, Op::Update, Some(row), old),
            None => {
                if let Some(old) = old {
                    out.push_rows(at, Op::Delete, None, Some(old));
                }
                out.push_rows(at, Op::Delete, None, Some(key));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for MadeFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        if self.pending.is_none() {
            let mut raw = Changes::new();
            let progress = self.inner.next(want, &mut raw).await?;
            self.raw = cut(raw, REREAD_BYTES, |change| self.weight(change)).into();
            self.pending = Some(progress);
        }
        let found = self.read_again().await?;
        if let Some(raw) = self.raw.front() {
            self.turn(raw, &found, out)?;
            self.raw.pop_front();
        }
        let Some(pending) = self.pending.take_if(|_| self.raw.is_empty()) else {
            let behind = self.pending.as_ref().map_or(0, |pending| pending.behind);
            return Ok(Progress { position: self.told.clone(), behind });
        };
        self.told.clone_from(&pending.position);
        Ok(pending)
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        self.inner.acknowledge(upto).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
