//! Proves both sides equal while writes go on, in bounded memory.
//!
//! Rows are compared as sets: each side is read once, in whatever order it has, and every row is added to the bucket
//! of its key as a hash. Buckets that differ are read again and their rows compared by key. A difference is believed
//! only if it stays the same, row for row, over [`ROUNDS`] rounds, each with the target brought to a position behind
//! the source's reading. A row that changes in every round is called unsettled, never different.

mod side;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tidegate_core::error::{self, code};
use tidegate_core::port::{Catalog, Route, StateStore, Store};
use tidegate_core::{Clock, Error, FlowName, Position, Result};

use self::side::{BUCKETS, Seen, Side, bucket, sides};
use crate::run::{QUIET, STATUS, read};
use crate::status::{Gauge, Status, hex};

/// Rounds that a difference has to survive.
pub const ROUNDS: usize = 3;
/// Rounds in which no row became equal until those that still change are left unsettled.
const ROUNDS_IDLE_MAX: usize = 8;
/// About how many rows are compared by key at a time, and named in all.
const NAMED_ROWS_MAX: usize = if cfg!(test) { 100 } else { 100_000 };
/// Tables that are compared at the same time: most of the time of a small one is waiting for the target.
const TABLES_AT_ONCE: usize = 4;
/// How long to wait before looking again how far the target is.
const POSITION_WAIT: Duration = Duration::from_millis(100);

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// In the source alone.
    Missing,
    /// In the target alone.
    Extra,
    /// In both, not the same.
    Different,
    /// It changed in every round.
    Unsettled,
}

/// A row that differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RowDifference {
    /// The table in the source.
    pub table: String,
    /// The key: a value for each of its columns.
    pub key: BTreeMap<String, String>,
    /// How it differs.
    pub kind: Kind,
    /// Which columns differ, and what the target's row has that is no column.
    pub columns: Vec<String>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Whether no row differs. A row that is unsettled is not equal either.
    pub equal: bool,
    /// Whether all rows that may differ were looked at one by one; if not, there are more than the report names.
    pub complete: bool,
    /// Tables that were compared to the end.
    #[serde(default)]
    pub tables: u64,
    /// Rows of the source that were compared.
    pub compared: u64,
    /// Rows that are not in the target.
    pub missing: u64,
    /// Rows that are in the target alone.
    pub extra: u64,
    /// Rows that are not the same.
    pub different: u64,
    /// Rows that changed in every round.
    pub unsettled: u64,
    /// The rows, as far as they are named.
    pub rows: Vec<RowDifference>,
    /// Tables that stopped and were not compared, by their names in the source. With any, the report is not equal.
    #[serde(default)]
    pub stopped: Vec<String>,
    /// Tables that could not be compared to the end, and why. With any, the report is not equal.
    #[serde(default)]
    pub unread: BTreeMap<String, String>,
    /// When it ended, in microseconds since 1970.
    pub at: i64,
}

impl Report {
    fn add(&mut self, table: Report) {
        self.complete &= table.complete;
        self.tables += table.tables;
        self.compared += table.compared;
        self.missing += table.missing;
        self.extra += table.extra;
        self.different += table.different;
        self.unsettled += table.unsettled;
        self.rows.extend(table.rows);
        self.unread.extend(table.unread);
    }
}

/// Two stores to be compared.
#[derive(Debug)]
pub struct Verification<'a> {
    /// The flow, whose record says how far the target is.
    pub name: &'a FlowName,
    /// The source.
    pub source: &'a dyn Store,
    /// The target.
    pub target: &'a dyn Store,
    /// The tables.
    pub routes: &'a [Route],
    /// The run that goes on in this process; else the record of one in another process is asked.
    pub run: Option<&'a Gauge>,
    /// How long to wait for the target to reach a position.
    pub patience: Duration,
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Where it tells how far it has got.
    pub reading: Arc<Reading>,
}

/// How far a verification has got, for whoever waits for it.
#[derive(Debug, Default)]
pub struct Reading {
    rows: AtomicU64,
    tables: Mutex<BTreeSet<String>>,
}

impl Reading {
    /// Rows that were read, of both sides and in every round.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// The tables that are compared now, by their names in the source.
    pub fn tables(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }

    fn read(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A row that is not the same on both sides, and for how many rounds it has been like that.
struct Differing {
    pair: (Option<Seen>, Option<Seen>),
    rounds: usize,
}

/// Compares all tables.
///
/// # Errors
/// If a side cannot be read, or the target does not reach the source's position in time.
pub async fn verify(verification: &Verification<'_>, state: &Arc<dyn StateStore>) -> Result<Report> {
    let mut report = Report { complete: true, ..Report::default() };
    let catalog = verification.target.catalog().await?;
    let tables = verification.routes.iter().map(async |route| {
        let mut report = Report { complete: true, ..Report::default() };
        let name = route.shape.table.name.to_string();
        verification.reading.lock().insert(name.clone());
        let done = verify_table(verification, state.as_ref(), catalog.as_ref(), route, &mut report).await;
        verification.reading.lock().remove(&name);
        match done {
            // What is wrong with one table's rows is its own trouble.
            Err(error) if error.kind() == error::Kind::Data => {
                report.unread.insert(name, error.line());
            }
            done => {
                done?;
                report.tables = 1;
            }
        }
        Ok::<_, Error>(report)
    });
    let mut tables = futures::stream::iter(tables).buffered(TABLES_AT_ONCE);
    while let Some(table) = tables.try_next().await? {
        report.add(table);
    }
    let differing = report.missing + report.extra + report.different + report.unsettled;
    report.equal = differing == 0 && report.unread.is_empty();
    report.at = verification.clock.now();
    Ok(report)
}

async fn verify_table(
    verification: &Verification<'_>,
    state: &dyn StateStore,
    target: &dyn Catalog,
    route: &Route,
    report: &mut Report,
) -> Result<()> {
    let (mut source, mut held) = sides(verification, target, route).await?;
    // Both at once: what is not the same is only suspected, and is looked at again in the right order.
    let ((expected, rows), (found, _)) =
        futures::try_join!(source.digest(route, target), held.digest(route, target))?;
    report.compared += rows;
    let suspected = (0..BUCKETS).filter(|at| expected[*at] != found[*at]);
    let mut suspected: VecDeque<(usize, u64)> =
        suspected.map(|at| (at, expected[at].0.max(found[at].0))).collect();
    while !suspected.is_empty() {
        // There is no need to name every row of a table that is another one.
        if report.rows.len() >= NAMED_ROWS_MAX {
            report.complete = false;
            break;
        }
        let (mut room, mut some) = (NAMED_ROWS_MAX as u64, BTreeSet::new());
        while let Some((at, rows)) = suspected.pop_front_if(|(_, rows)| *rows <= room || some.is_empty()) {
            room = room.saturating_sub(rows);
            some.insert(at);
        }
        settle(verification, state, target, (&mut source, &mut held), route, some, report).await?;
    }
    Ok(())
}

/// Compares the rows of some buckets one by one, as often as it takes.
async fn settle(
    verification: &Verification<'_>,
    state: &dyn StateStore,
    target: &dyn Catalog,
    (source, held): (&mut Side, &mut Side),
    route: &Route,
    mut suspects: BTreeSet<usize>,
    report: &mut Report,
) -> Result<()> {
    let columns = route.target.columns.len();
    // A row is believed to differ when it has done so in the same way for some rounds, whatever other rows do.
    let mut differing: BTreeMap<Vec<u8>, Differing> = BTreeMap::new();
    let (mut fewest, mut idle) = (usize::MAX, 0);
    while idle < ROUNDS_IDLE_MAX {
        if suspects.is_empty() {
            return Ok(());
        }
        let expected = source.collect(route, target, &suspects).await?;
        reach(verification, state, source.crawler.as_of().await?.barrier).await?;
        let found = held.collect(route, target, &suspects).await?;
        let keys: BTreeSet<&Vec<u8>> = expected.keys().chain(found.keys()).collect();
        let now = keys.into_iter().filter_map(|key| {
            let (expected, found) = (expected.get(key), found.get(key));
            (expected.map(|s| (s.rows, s.hash)) != found.map(|s| (s.rows, s.hash))).then(|| {
                let pair = (expected.cloned(), found.cloned());
                let before = differing.get(key).filter(|before| before.pair == pair);
                let rounds = before.map_or(1, |before| before.rounds + 1);
                (key.clone(), Differing { pair, rounds })
            })
        });
        differing = now.collect();
        suspects = differing.keys().map(|key| bucket(key)).collect();
        let unsettled = differing.values().filter(|row| row.rounds < ROUNDS).count();
        if unsettled == 0 {
            break;
        }
        idle = if differing.len() < fewest { 0 } else { idle + 1 };
        fewest = fewest.min(differing.len());
        verification.clock.sleep(POSITION_WAIT).await;
    }
    for Differing { pair: (expected, found), rounds } in differing.into_values() {
        let kind = match (&expected, &found) {
            _ if rounds < ROUNDS => Kind::Unsettled,
            (Some(_), None) => Kind::Missing,
            (None, Some(_)) => Kind::Extra,
            (Some(expected), Some(found)) if expected.rows > found.rows => Kind::Missing,
            (Some(expected), Some(found)) if expected.rows < found.rows => Kind::Extra,
            _ => Kind::Different,
        };
        *match kind {
            Kind::Missing => &mut report.missing,
            Kind::Extra => &mut report.extra,
            Kind::Different => &mut report.different,
            Kind::Unsettled => &mut report.unsettled,
        } += 1;
        let columns = match (&expected, &found) {
            (Some(expected), Some(found)) => {
                let differ = |at: &usize| expected.cells.get(*at) != found.cells.get(*at);
                let named = (0..columns).filter(differ).map(|at| route.target.columns[at].name.clone());
                named.chain(found.surplus.iter().cloned()).collect()
            }
            _ => Vec::new(),
        };
        let key = expected.or(found).map(|seen| seen.key).unwrap_or_default();
        report.rows.push(RowDifference { table: route.shape.table.name.to_string(), key, kind, columns });
    }
    Ok(())
}

/// Waits until the target has everything up to a position, if a runner is at work.
async fn reach(verification: &Verification<'_>, state: &dyn StateStore, position: Position) -> Result<()> {
    let wanted = hex(position.bytes());
    let until = verification.clock.elapsed() + verification.patience;
    let (mut written_at, mut heard) = (None, verification.clock.elapsed());
    loop {
        let status = match verification.run {
            Some(gauge) => Status { running: true, ..gauge.read(verification.clock) },
            None => read::<Status>(state, verification.name, STATUS).await?.0,
        };
        // By the time that passes here: the clock of its machine may be another.
        if written_at.replace(status.at) != Some(status.at) {
            heard = verification.clock.elapsed();
        }
        let is_gone = verification.run.is_none() && verification.clock.elapsed() > heard + QUIET;
        if !status.running || is_gone || status.position >= wanted {
            return Ok(());
        }
        if verification.clock.elapsed() > until {
            return Err(Error::new(
                code::TIMED_OUT,
                "the target does not reach the source's position in time",
            )
            .hint("let the migration catch up first, or give it more time with --timeout"));
        }
        verification.clock.sleep(POSITION_WAIT).await;
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::port::Selection;
    use tidegate_core::{Canonical, Codec, Column, Encoding, Shape, SystemClock, TableName, Type, Value};
    use tidegate_memory::{MemoryStore, Write};

    use super::*;

    /// Two stores with a table of `id` and `v`.
    struct Pair {
        source: MemoryStore,
        target: MemoryStore,
    }

    impl Pair {
        /// With `v` 0 in all rows of the source, and 1 in the target where it is to differ.
        fn new(rows: i64, differ: impl Fn(i64) -> bool) -> Self {
            let pair = Self { source: MemoryStore::new("a"), target: MemoryStore::new("b") };
            for (store, is_target) in [(&pair.source, false), (&pair.target, true)] {
                let columns = ["id", "v"].map(|column| Column::new(column, Type::Int { bits: 64 }));
                store.create_table(&table(), columns.to_vec(), &["id"]);
                let row = |id| [Value::Int(id), Value::Int(i64::from(is_target && differ(id)))];
                let rows: Vec<_> = (0..rows).map(|id| Write::insert(&table(), row(id))).collect();
                store.transact(&rows).unwrap();
            }
            pair
        }

        /// Changes a row of the target.
        fn set(&self, id: i64, v: i64) {
            let change = Write::update(&table(), [Value::Int(id)], [(1, Value::Int(v))]);
            self.target.transact(&[change]).unwrap();
        }

        async fn compare(&self) -> Report {
            self.compare_read_by(Arc::new(Canonical)).await
        }

        async fn compare_read_by(&self, codec: Arc<dyn Codec>) -> Report {
            let catalog = self.source.catalog().await.unwrap();
            let (tables, _) = catalog.describe(&Selection::All).await.unwrap();
            let table = Arc::new(tables[0].clone());
            let shape = Shape { codec, table: Arc::clone(&table) };
            let (name, clock) = (flow(), SystemClock::shared());
            let verification = Verification {
                name: &name,
                source: &self.source,
                target: &self.target,
                routes: &[Route { shape, target: table }],
                run: None,
                patience: Duration::from_secs(60),
                clock: clock.as_ref(),
                reading: Arc::default(),
            };
            verify(&verification, &self.target.state().await.unwrap()).await.unwrap()
        }
    }

    fn table() -> TableName {
        TableName::new("", "t")
    }

    fn flow() -> FlowName {
        FlowName::new("shop").unwrap()
    }

    async fn compare(rows: i64, differ: impl Fn(i64) -> bool) -> Report {
        Pair::new(rows, differ).compare().await
    }

    /// Found by reading: what did not fit into the first look was left out, and the rest could be called equal.
    #[tokio::test(start_paused = true)]
    async fn every_suspected_bucket_is_looked_at() {
        let found = compare(1_000, |id| id % 12 == 0).await;
        assert_eq!((found.equal, found.complete, found.different), (false, true, 84));
        assert!(compare(1_000, |_| false).await.equal);
        let found = compare(1_000, |_| true).await;
        assert!(!found.equal && !found.complete && found.different >= 100, "{found:?}");
    }

    /// A row that is late, and one that is never at rest.
    #[tokio::test(start_paused = true)]
    async fn a_difference_that_does_not_last_is_not_believed() {
        let pair = Pair::new(10, |id| id == 3);
        let late = async {
            tokio::time::sleep(POSITION_WAIT + POSITION_WAIT / 2).await;
            pair.set(3, 0);
        };
        let (report, ()) = tokio::join!(pair.compare(), late);
        assert!(report.equal, "{report:?}");

        let pair = Pair::new(10, |id| id == 3);
        let restless = async {
            for v in 2.. {
                tokio::time::sleep(POSITION_WAIT).await;
                pair.set(3, v);
            }
        };
        let report =
            tokio::select! { report = pair.compare() => report, () = restless => panic!("it never ends") };
        assert_eq!((report.equal, report.different, report.unsettled), (false, 0, 1));
    }

    /// Reads an even number and the odd one behind it as the same.
    #[derive(Debug)]
    struct Halving;

    impl Codec for Halving {
        fn encoding(&self) -> Encoding {
            Encoding::CANONICAL
        }

        fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
            Ok(match Value::decode(cell)? {
                Value::Int(v) => Value::Int(v / 2),
                other => other,
            })
        }
    }

    /// Found by a reader: both sides were told by the keys that the target has, and rows that became one were equal.
    #[tokio::test(start_paused = true)]
    async fn rows_that_became_one_in_the_target_are_missing() {
        let pair = Pair::new(10, |_| false);
        let gone: Vec<_> = (5..10).map(|id| Write::delete(&table(), [Value::Int(id)])).collect();
        pair.target.transact(&gone).unwrap();
        let report = pair.compare_read_by(Arc::new(Halving)).await;
        assert_eq!((report.equal, report.missing, report.different), (false, 5, 0), "{report:?}");
    }

    /// Found by reading: the record of a runner that was killed says that it runs.
    #[tokio::test(start_paused = true)]
    async fn a_runner_that_was_killed_is_not_waited_for() {
        let pair = Pair::new(10, |id| id == 3);
        let state = pair.target.state().await.unwrap();
        let record = Status { running: true, ..Status::default() };
        state.put(&flow(), STATUS, &serde_json::to_string(&record).unwrap(), 0).await.unwrap();
        assert_eq!(pair.compare().await.different, 1);
    }
}
