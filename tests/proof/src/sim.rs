//! Simulated histories: the real engine over model stores, a fault at every port call, replayable from one number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Kind, code};
use tidegate_core::port::{Route, Selection, Store};
use tidegate_core::{Column, FlowName, Shape, SystemClock, Table, Type};
use tidegate_flow::plant::plant;
use tidegate_flow::{
    Doubt, Ended, Flow, Gauge, Options, Request, TableState, Transformed, Until, Wanted, renew, run_once,
    seal,
};
use tidegate_memory::MemoryStore;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::carried::Way;
use crate::fault::FaultyStore;
use crate::made::Turn;
use crate::plant::{PLANTS, Plant, PortBug};
use crate::world::{Coverage, Difference, Shared, World};

/// Runs of one history before it counts as stuck.
const RUNS_MAX: usize = 60;

/// The rare paths that a run has to take to prove anything.
pub(crate) const PATHS: &[&str] = &[
    "a batch done twice",
    "a table that changed recopied",
    "broker cut, or its answers lost",
    "calls carried by a broker",
    "chunk row completed",
    "chunk row overtaken",
    "column added",
    "column followed",
    "column with a default added",
    "commit logged before it was seen",
    "done and the answer lost",
    "failed before the call",
    "key change completed",
    "key replaced by an equal one",
    "message lost by the broker",
    "message stored again, late",
    "part of a batch done",
    "reads given up",
    "row kept out, written later",
    "rows filtered and computed",
    "rows of another table folded in",
    "run began again for a table",
    "run broke and another began",
    "table crawled anew",
    "table skipped, later crawled anew",
    "target's process killed",
    "told to stop",
    "truncate",
    "unique values exchanged",
];

/// How a history ended.
#[derive(Debug)]
pub(crate) enum Verdict {
    Equal,
    Different(Difference),
    /// It stopped with an error although nothing was wrong, or did not end.
    Stuck(String),
}

/// The sum of many histories.
#[derive(Debug, Default, serde::Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) n: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) diverged: u64,
    pub(crate) stuck: u64,
    /// The first seeds that went wrong, with what happened.
    pub(crate) red: Vec<(u64, String)>,
    pub(crate) coverage: BTreeMap<String, u64>,
    pub(crate) planted: BTreeMap<String, bool>,
}

impl Report {
    /// A run proves nothing about a path that it did not take.
    fn untaken(&self) -> Vec<&'static str> {
        let taken = |path: &str| self.coverage.get(path).is_some_and(|times| *times > 0);
        PATHS.iter().copied().filter(|path| self.n >= 1_000 && !taken(path)).collect()
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.red.is_empty() && self.untaken().is_empty() && self.planted.values().all(|caught| *caught)
    }

    /// The outcome in one line.
    pub(crate) fn line(&self) -> String {
        let caught = self.planted.values().filter(|caught| **caught).count();
        let untaken = self.untaken();
        let never = if untaken.is_empty() {
            String::new()
        } else {
            format!("; never happened: {}", untaken.join(", "))
        };
        format!(
            "sim: {} histories, {} red; {caught} of {} planted bugs caught{never}",
            self.n,
            self.lost.max(self.diverged).max(self.duplicated).max(self.stuck),
            self.planted.len()
        )
    }

    fn add(&mut self, seed: u64, verdict: &Verdict, coverage: &Coverage) {
        self.n += 1;
        for (what, times) in coverage {
            *self.coverage.entry((*what).to_owned()).or_default() += times;
        }
        let what = match verdict {
            Verdict::Equal => return,
            Verdict::Different(found) => {
                self.lost += u64::from(found.lost > 0);
                self.duplicated += u64::from(found.duplicated > 0);
                self.diverged += u64::from(found.diverged > 0);
                format!("{found:?}")
            }
            Verdict::Stuck(what) => {
                self.stuck += 1;
                what.clone()
            }
        };
        if self.red.len() < 10 {
            self.red.push((seed, what));
        }
    }

    fn merge(&mut self, other: Report) {
        self.n += other.n;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.diverged += other.diverged;
        self.stuck += other.stuck;
        self.red.extend(other.red);
        for (what, times) in other.coverage {
            *self.coverage.entry(what).or_default() += times;
        }
    }
}

/// Runs `n` histories from a seed on, on as many threads as there are cores.
pub(crate) fn run(seed: u64, n: u64, planted: Option<Plant>) -> Report {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut report = Report { seed, ..Report::default() };
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut report = Report::default();
                    for seed in (seed..seed + n)
                        .skip(usize::try_from(thread).unwrap_or(0))
                        .step_by(usize::try_from(threads).unwrap_or(1))
                    {
                        let (verdict, coverage) = history(seed, planted);
                        report.add(seed, &verdict, &coverage);
                    }
                    report
                })
            })
            .collect();
        for part in parts {
            match part.join() {
                Ok(part) => report.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    report.red.sort();
    report
}

/// Looks for each planted bug, up to `n` histories each.
pub(crate) fn hunt(seed: u64, n: u64) -> BTreeMap<String, bool> {
    let found =
        |planted| (seed..seed + n).any(|seed| !matches!(history(seed, Some(planted)).0, Verdict::Equal));
    PLANTS.iter().map(|(name, planted)| ((*name).to_owned(), found(*planted))).collect()
}

/// One history: everything that happens follows from the seed.
pub(crate) fn history(seed: u64, planted: Option<Plant>) -> (Verdict, Coverage) {
    let engine_bug = if let Some(Plant::Engine(bug)) = planted { Some(bug) } else { None };
    let port_bug = if let Some(Plant::Port(bug)) = planted { Some(bug) } else { None };
    plant(engine_bug);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    // A panic is one history's: its seed is to be known, and the others go on.
    let outcome = runtime.map(|runtime| {
        let lives = std::panic::AssertUnwindSafe(|| runtime.block_on(live(seed, port_bug)));
        std::panic::catch_unwind(lives)
    });
    plant(None);
    match outcome {
        Ok(Ok(lived)) => lived,
        Ok(Err(_)) => (Verdict::Stuck("it panicked".to_owned()), Coverage::new()),
        Err(e) => (Verdict::Stuck(format!("no runtime: {e}")), Coverage::new()),
    }
}

async fn live(seed: u64, bug: Option<PortBug>) -> (Verdict, Coverage) {
    let (source, target) = (MemoryStore::new("source"), MemoryStore::new("target"));
    let world = Shared::new(World::new(seed, &source));
    let mut flow = match prepare(&source, &target, &world, bug).await {
        Ok(flow) => flow,
        Err(e) => return (Verdict::Stuck(format!("{e:?}")), Coverage::new()),
    };
    let way = world.lock().carried.then(|| Way::new(Arc::clone(&flow.target), world.clone()));
    if let Some(way) = &way {
        world.lock().count("calls carried by a broker");
        flow.target = way.carried();
    }
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let name = flow.name.clone();
    let other_end = async {
        match &way {
            Some(way) => way.live(&name).await,
            None => std::future::pending().await,
        }
    };
    let driven = tokio::select! {
        biased;
        driven = drive(&mut flow, &gauge, &target, &world) => driven,
        broken = other_end => Err(format!("the target's end broke: {broken:?}")),
    };
    let verdict = match driven {
        Err(stuck) => Verdict::Stuck(stuck),
        Ok(()) => {
            let mut world = world.lock();
            let honest = world.compare_source(&source);
            let found = world.compare_target(&target);
            let status = gauge.read(flow.clock.as_ref());
            for (what, times) in [
                ("chunk row overtaken", status.tables.iter().map(|t| t.rows_overtaken).sum()),
                ("chunk row completed", status.tables.iter().map(|t| t.rows_completed).sum()),
                ("key change completed", status.rows_moved),
                ("row kept out, written later", status.rows_healed),
                ("reads given up", status.reads_given_up),
            ] {
                *world.coverage.entry(what).or_default() += times;
            }
            if honest != Difference::default() {
                Verdict::Stuck(format!("the model differs from the ledger: {honest:?}"))
            } else if found == Difference::default() {
                Verdict::Equal
            } else {
                Verdict::Different(found)
            }
        }
    };
    let coverage = std::mem::take(&mut world.lock().coverage);
    (verdict, coverage)
}

async fn prepare(
    source: &MemoryStore,
    target: &MemoryStore,
    world: &Shared,
    bug: Option<PortBug>,
) -> tidegate_core::Result<Flow> {
    let names = world.lock().tables().to_vec();
    let wanted = names.clone();
    let wrap = |inner: &MemoryStore| -> Arc<dyn Store> {
        Arc::new(FaultyStore { inner: Arc::new(inner.clone()), world: world.clone(), bug })
    };
    let (mut from, mut plain): (_, Arc<dyn Store>) = (wrap(source), Arc::new(source.clone()));
    let turn = world.lock().turn;
    if let Some(turn) = turn {
        let turned = |store| -> Arc<dyn Store> {
            Arc::new(Transformed::new(store, Arc::new(turn), SystemClock::shared()))
        };
        world.lock().count(match turn {
            Turn::Filter => "rows filtered and computed",
            Turn::Fold => "rows of another table folded in",
        });
        (from, plain) = (turned(from), turned(plain));
    }
    // Described without faults: a plan that fails is made again by hand.
    let catalog = plain.catalog().await?;
    let (tables, _) = catalog.describe(&Selection::These(names)).await?;
    let tables: Vec<Arc<Table>> = tables.into_iter().map(Arc::new).collect();
    let held = held(&tables, world.lock().has_forms);
    target.catalog().await?.create(&held).await?;
    if world.lock().unique {
        tables.iter().for_each(|table| target.create_unique(&table.name, &["small"]));
    }
    let route = |table: &Arc<Table>| Route {
        shape: Shape { table: Arc::clone(table), codec: catalog.codec(table) },
        target: Arc::clone(table),
    };
    let mut options = Options::default();
    {
        let rng = &mut world.lock().rng;
        options.chunk_rows = rng.usize(1..6);
        options.chunk_bytes = if rng.bool() { 1 << 20 } else { rng.usize(1..200) };
        options.workers = rng.usize(1..4);
        options.ranges_per_worker = rng.usize(1..3);
        options.batch_changes = rng.usize(1..20);
        // Sometimes so small that reads have to be given up.
        options.window_bytes = if rng.u8(0..4) == 0 { 200 } else { 1 << 20 };
        options.acknowledge_every = Duration::from_millis(rng.u64(1..200));
    }
    let routes = tables.iter().map(route).collect();
    let wanted = Wanted { tables: Selection::These(wanted), allow_non_empty: true, ..Wanted::default() };
    Ok(Flow { options, ..Flow::new(FlowName::new("sim")?, from, wrap(target), routes, wanted) })
}

/// The target's tables: keys that are equal in the source may differ there.
fn held(tables: &[Arc<Table>], has_forms: bool) -> Vec<Arc<Table>> {
    let apart = |column: &Column| match column.kind {
        Type::Decimal { .. } if has_forms => Column { kind: Type::Text, ..column.clone() },
        _ => column.clone(),
    };
    let held = |table: &Arc<Table>| {
        Arc::new(Table { columns: table.columns.iter().map(apart).collect(), ..table.as_ref().clone() })
    };
    tables.iter().map(held).collect()
}

/// Starts run after run, as a supervisor would, until one has caught up in a world that has come to rest.
async fn drive(flow: &mut Flow, gauge: &Gauge, target: &MemoryStore, world: &Shared) -> Result<(), String> {
    let mut at_rest = false;
    let mut skipped = None;
    let mut recopying;
    let mut doubt = Doubt::default();
    for run in 0..RUNS_MAX {
        let (ask, mut requests) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let mut request = None;
        {
            let mut world = world.lock();
            at_rest = at_rest || run > 10;
            if at_rest {
                world.settle();
            }
            recopying = skipped.take();
            if let Some(table) = recopying {
                request = Some(Request::Recopy(table));
            } else if world.faults_left > 0 && world.rng.u8(0..6) == 0 {
                world.faults_left -= 1;
                let table = world.rng.usize(..flow.routes.len());
                if world.rng.bool() {
                    world.count("table crawled anew");
                    request = Some(Request::Recopy(table));
                    // What is asked for stays so until it is done.
                    recopying = Some(table);
                } else {
                    world.count("table skipped, later crawled anew");
                    request = Some(Request::Skip(table));
                    skipped = Some(table);
                }
            }
        }
        let recopied: BTreeSet<String> =
            recopying.iter().map(|table| flow.routes[*table].shape.table.name.to_string()).collect();
        let renewed = async {
            seal::renew(flow, target).await?;
            renew(flow, target, &recopied, &mut doubt).await
        };
        match renewed.await {
            Ok(changed) => {
                if changed && flow.refused.is_empty() {
                    world.lock().count("column followed");
                }
            }
            Err(e) if matches!(e.kind(), Kind::Unreachable) => {
                skipped = skipped.or(recopying);
                continue;
            }
            Err(e) => return Err(format!("{e:?}")),
        }
        if let Some(request) = request {
            let _ = ask.send(request);
        }
        let late = {
            let mut world = world.lock();
            (world.faults_left > 0 && world.rng.u8(0..6) == 0).then(|| {
                world.faults_left -= 1;
                world.count("told to stop");
                Duration::from_millis(world.rng.u64(0..300))
            })
        };
        let stopper = async {
            match late {
                Some(late) => {
                    tokio::time::sleep(late).await;
                    stop.cancel();
                }
                None => std::future::pending().await,
            }
        };
        let running = tokio::time::timeout(
            Duration::from_secs(600),
            run_once(flow, Until::CaughtUp, gauge, &mut requests, &stop),
        );
        tokio::pin!(running);
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended,
            () = stopper => running.await,
        };
        match ended {
            Err(_) => return Err("a run did not end".to_owned()),
            Ok(Ok(Ended::Again)) => world.lock().count("run began again for a table"),
            Ok(Ok(Ended::Stopped)) => skipped = skipped.or(recopying),
            Ok(Ok(Ended::CaughtUp)) => {
                if let Some(table) =
                    gauge.read(flow.clock.as_ref()).tables.into_iter().find(|t| t.state == TableState::Failed)
                {
                    let Some(refused) = flow.refused.keys().next() else {
                        return Err(format!("a table stopped: {:?}", table.error));
                    };
                    // What the error says is the way on, one table after another.
                    world.lock().count("a table that changed recopied");
                    skipped = skipped.or(Some(*refused));
                }
                // It has caught up with a world that may have gone on since: once more with one at rest.
                if at_rest && skipped.is_none() {
                    return Ok(());
                }
                at_rest = true;
            }
            Ok(Err(e)) if matches!(e.kind(), Kind::Unreachable) => {
                // What was asked for may not have become durable: it is asked for again.
                skipped = skipped.or(recopying);
                world.lock().count("run broke and another began");
            }
            Ok(Err(e)) if e.code() == code::SCHEMA_CHANGED => {
                skipped = skipped.or(recopying);
                doubt.hear(flow, e).map_err(|e| format!("{e:?}"))?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(Err(e)) => return Err(format!("{e:?}")),
        }
    }
    Err("no run caught up".to_owned())
}
