//! Keeps a flow running: one runner at a time, run after run with back-off, its state on record.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::StateStore;
use tidegate_core::{Error, FlowName, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::{Ended, Flow, MaxRate, Request, Until, begin_capture, run_once};
use crate::follow::{Doubt, renew};
use crate::seal;
use crate::status::{Gauge, Status};
use crate::watch::watch;

/// The record that a runner keeps of itself.
pub const STATUS: &str = "status";
/// The record of what people want of a runner.
pub const WISHES: &str = "wishes";

/// How long a lease lasts if it is not renewed.
const LEASE: Duration = Duration::from_secs(5);
/// How often the lease is renewed, the record is written and wishes are read.
const BEAT: Duration = Duration::from_millis(500);
/// A runner that has not written its record for so long is not there any more; one that was killed has not said so.
pub const QUIET: Duration = Duration::from_secs(10);
/// Pauses between runs that broke: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Pause before both sides are looked at anew.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What people want, from any process. It is durable, so that it also holds for the next runner.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// Nothing is crawled; changes go on.
    pub paused: bool,
    /// Tables whose crawl is paused.
    pub paused_tables: std::collections::BTreeSet<String>,
    /// How fast is crawled at most.
    pub max_rate: MaxRate,
    /// Reads of the crawl at the same time; `None` for what the configuration says.
    pub workers: Option<usize>,
    /// Tables to be left out, and tables to be crawled anew: how often each was asked for.
    pub skips: BTreeMap<String, u64>,
    /// See `skips`.
    pub recopies: BTreeMap<String, u64>,
    /// How often somebody wanted both sides to be looked at anew.
    pub looks: u64,
    /// How many of these were done, by the runner.
    pub done: BTreeMap<String, u64>,
}

impl Wishes {
    /// The table is to be left out. The last wish counts: it is not to be crawled anew.
    pub fn skip(&mut self, table: &str) {
        *self.skips.entry(table.to_owned()).or_default() += 1;
        self.give_up("recopy", table);
    }

    /// The table is to be crawled anew, and not to be left out.
    pub fn recopy(&mut self, table: &str) {
        *self.recopies.entry(table.to_owned()).or_default() += 1;
        self.give_up("skip", table);
    }

    fn give_up(&mut self, verb: &str, table: &str) {
        let wishes = if verb == "skip" { &self.skips } else { &self.recopies };
        if let Some(times) = wishes.get(table) {
            self.done.insert(format!("{verb} {table}"), *times);
        }
    }

    /// Tables to be crawled anew that were not yet.
    pub fn recopies_open(&self) -> BTreeMap<String, u64> {
        self.open("recopy", &self.recopies)
    }

    /// Tables to be left out that were not yet.
    pub fn skips_open(&self) -> BTreeMap<String, u64> {
        self.open("skip", &self.skips)
    }

    fn open(&self, verb: &str, wishes: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let is_open = |(name, times): &(&String, &u64)| {
            self.done.get(&format!("{verb} {name}")).is_none_or(|done| done < times)
        };
        wishes.iter().filter(is_open).map(|(name, times)| (name.clone(), *times)).collect()
    }
}

/// Reads a record; its default if there is none.
///
/// # Errors
/// As the store's; `internal` if it is not of this form.
pub async fn read<T: serde::de::DeserializeOwned + Default>(
    state: &dyn StateStore,
    flow: &FlowName,
    key: &str,
) -> Result<(T, u64)> {
    match state.get(flow, key).await? {
        None => Ok((T::default(), 0)),
        Some(stored) => {
            let value = serde_json::from_str(&stored.value).map_err(|e| {
                Error::new(code::STATE_NEWER, format!("the record {key} cannot be read")).because(e)
            })?;
            Ok((value, stored.version))
        }
    }
}

/// Changes a record, again if somebody else did so at the same time.
///
/// # Errors
/// As the store's.
pub async fn change<T: serde::Serialize + serde::de::DeserializeOwned + Default>(
    state: &dyn StateStore,
    flow: &FlowName,
    key: &str,
    change: impl Fn(&mut T),
) -> Result<T> {
    for _ in 0..100 {
        let (mut value, version) = read::<T>(state, flow, key).await?;
        change(&mut value);
        let text = serde_json::to_string(&value)
            .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))?;
        if state.put(flow, key, &text, version).await?.is_some() {
            return Ok(value);
        }
    }
    Err(Error::new(code::LIMIT_REACHED, format!("the record {key} is changed by others all the time")))
}

/// Runs a flow, again and again where that can help, until it ends, is told to stop, or cannot go on.
///
/// # Errors
/// `lease-held` if another runner has the flow; the error that ended the last run, if trying again cannot help or
/// has not for `patience`.
pub async fn run(
    flow: &Flow,
    until: Until,
    gauge: &Gauge,
    state: &Arc<dyn StateStore>,
    holder: &str,
    patience: Duration,
    stop: &CancellationToken,
) -> Result<Ended> {
    // Before anything is waited for: until then it is what there is to show.
    let (earlier, version) = read::<Status>(state.as_ref(), &flow.name, STATUS).await?;
    gauge.restore(&earlier);
    take_lease(flow, state.as_ref(), holder).await?;
    let runner = Runner { gauge, state: state.as_ref(), holder, is_own: AtomicBool::new(false) };
    let ended = if version > 0 && state.get(&flow.name, STATUS).await?.is_none() {
        // What was planned for it is not what a new one needs.
        Err(lost("the migration was removed while its lease was waited for"))
    } else {
        tokio::select! {
            biased;
            // As long as anything goes on, pauses and all: nobody may take the flow, or remove it, meanwhile.
            lost = runner.keep(flow) => lost.map(|never| match never {}),
            ended = runs(flow, until, &runner, patience, stop) => ended,
        }
    };
    // The record is another's where the flow is.
    let anothers = [code::NAME_TAKEN, code::LEASE_LOST, code::LEASE_HELD];
    let is_own = ended.as_ref().err().is_none_or(|error| !anothers.contains(&error.code()));
    let record = if is_own { write_status(flow, gauge, state.as_ref(), &ended).await } else { Ok(()) };
    let released = state.release(&flow.name, holder).await;
    // What ended it comes first: the store may be out of reach for the same reason.
    let ended = ended?;
    record?;
    released?;
    Ok(ended)
}

/// Takes the lease. A runner that was killed leaves one behind, which ends by itself; one that is alive renews it.
async fn take_lease(flow: &Flow, state: &dyn StateStore, holder: &str) -> Result<()> {
    let until = flow.clock.elapsed() + LEASE + 2 * BEAT;
    let mut said = false;
    loop {
        match state.hold(&flow.name, holder, LEASE).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == code::LEASE_HELD && flow.clock.elapsed() < until => {
                if !said {
                    tracing::warn!(%error, seconds = LEASE.as_secs(), "waiting for the lease, which ends by itself if its holder was killed");
                    said = true;
                }
                flow.clock.sleep(BEAT).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Who runs a flow, and where that is on record.
struct Runner<'a> {
    gauge: &'a Gauge,
    state: &'a dyn StateStore,
    holder: &'a str,
    /// Whether what the source keeps under the flow's name is for this target. Its record is written then.
    is_own: AtomicBool,
}

impl Runner<'_> {
    /// Renews the lease.
    ///
    /// # Errors
    /// `lease-lost` if it is not this holder's any more; `lease-held` if it is another's.
    async fn hold(&self, flow: &Flow) -> Result<()> {
        if self.state.hold(&flow.name, self.holder, LEASE).await?.renewed {
            return Ok(());
        }
        Err(lost("another process took the migration, or removed it, while the state was out of reach"))
    }

    /// Renews the lease and writes the record, until the lease is lost.
    async fn keep(&self, flow: &Flow) -> Result<Infallible> {
        loop {
            match self.hold_on_record(flow).await {
                Err(error) if [code::LEASE_LOST, code::LEASE_HELD].contains(&error.code()) => {
                    return Err(error);
                }
                // The run itself finds out whether the state is there, and what to do then.
                Err(error) => tracing::debug!(%error, "the lease could not be renewed"),
                Ok(_) => {}
            }
            flow.clock.sleep(BEAT).await;
        }
    }

    async fn hold_on_record(&self, flow: &Flow) -> Result<()> {
        self.hold(flow).await?;
        if self.is_own.load(Ordering::Relaxed) {
            let mut status = self.gauge.read(flow.clock.as_ref());
            status.running = true;
            change(self.state, &flow.name, STATUS, |record: &mut Status| *record = status.clone()).await?;
        }
        Ok(())
    }
}

fn lost(text: &'static str) -> Error {
    Error::new(code::LEASE_LOST, text).hint("tidegate migrate status says what is there now")
}

async fn write_status(
    flow: &Flow,
    gauge: &Gauge,
    state: &dyn StateStore,
    ended: &Result<Ended>,
) -> Result<()> {
    let mut status = gauge.read(flow.clock.as_ref());
    status.running = false;
    status.error = ended.as_ref().err().map(Error::line);
    change(state, &flow.name, STATUS, |record: &mut Status| *record = status.clone()).await?;
    Ok(())
}

async fn runs(
    flow: &Flow,
    until: Until,
    runner: &Runner<'_>,
    patience: Duration,
    stop: &CancellationToken,
) -> Result<Ended> {
    let gauge = runner.gauge;
    // One for all attempts: a source is in danger above all while none of them gets anywhere.
    let danger = watch(flow, gauge);
    tokio::pin!(danger);
    let mut flow = flow.clone();
    let mut pause = PAUSES.0;
    let mut broken_since = None;
    let mut doubt = Doubt::default();
    loop {
        let began = flow.clock.elapsed();
        let ends = (danger.as_mut(), stop);
        let outcome = attempt(&mut flow, until, runner, &mut doubt, ends).await;
        if let Err(error) = &outcome {
            gauge.broke(error);
        }
        // A run that lived for a while was a good one, however it ended: what breaks the next one is new.
        if outcome.is_ok() || flow.clock.elapsed().saturating_sub(began) > PAUSES.1 {
            broken_since = None;
            pause = PAUSES.0;
        }
        let error = match outcome {
            Ok(Ended::Again) => continue,
            Ok(ended) => return Ok(ended),
            Err(error) if flow.is_of_a_changed_table(&error) => {
                tracing::info!(%error, "a table changed; both sides are looked at anew");
                doubt.hear(&flow, error)?;
                flow.clock.sleep(LOOK_PAUSE).await;
                continue;
            }
            Err(error) if error.verdict() == Verdict::Never => return Err(error),
            Err(error) => error,
        };
        let since = *broken_since.get_or_insert(flow.clock.elapsed());
        if flow.clock.elapsed().saturating_sub(since) > patience {
            return Err(error);
        }
        tracing::warn!(%error, pause_ms = pause.as_millis(), "the run broke; the next one goes on from the checkpoint");
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(Ended::Stopped),
            danger = &mut danger => return danger.map(|never| match never {}),
            () = flow.clock.sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// One run, with what is wanted now, over the tables as they are now. Whatever fails here may be tried again.
async fn attempt(
    flow: &mut Flow,
    until: Until,
    runner: &Runner<'_>,
    doubt: &mut Doubt,
    (danger, stop): (Pin<&mut impl Future<Output = Result<Infallible>>>, &CancellationToken),
) -> Result<Ended> {
    let Runner { gauge, state, .. } = *runner;
    let Some(prepared) = stop.run_until_cancelled(prepare(flow, runner, doubt)).await else {
        return Ok(Ended::Stopped);
    };
    let (wishes, target) = prepared?;
    let mut flow = flow.clone();
    flow.options.workers = wishes.workers.unwrap_or(flow.options.workers);
    let (ask, mut requests) = mpsc::unbounded_channel();
    let mut asking = Asking {
        granted: Wishes { workers: wishes.workers, looks: wishes.looks, ..Wishes::default() },
        looked: wishes.recopies_open(),
        asked: Asked::new(),
        ask,
    };
    // Before it begins: a run that has caught up ends at once.
    asking.grant(&flow, gauge, wishes);
    let outcome = tokio::select! {
        biased;
        outcome = run_once(&flow, until, gauge, &mut requests, stop) => outcome,
        broken = pass_wishes_on(&flow, gauge, state, &mut asking) => broken.map(|never| match never {}),
        danger = danger => danger.map(|never| match never {}),
        replaced = seal::keep(&flow, target.as_ref()) => replaced.map(|never| match never {}),
    };
    // What was done since the last beat is not to be done again by the next run.
    let noted = note_done(&flow, state, &gauge.read(flow.clock.as_ref()), &mut asking.asked).await;
    let ended = outcome.and_then(|ended| noted.map(|()| ended))?;
    // A copy of the source that is made from now on has what this run has read; an earlier one may not.
    seal::renew(&flow, target.as_ref()).await?;
    Ok(ended)
}

/// Makes the flow what its tables are now, and gives what is wanted of it, and the target's own records.
async fn prepare(
    flow: &mut Flow,
    runner: &Runner<'_>,
    doubt: &mut Doubt,
) -> Result<(Wishes, Arc<dyn StateStore>)> {
    // Before anything is made: the lease may have been lost while the last run was broken.
    runner.hold(flow).await?;
    let state = runner.state;
    let target = flow.target.state().await?;
    let is_sealed = seal::renew(flow, target.as_ref()).await?;
    let mut wishes = read::<Wishes>(state, &flow.name, WISHES).await?.0;
    let recopied = wishes.recopies_open().into_keys().collect();
    renew(flow, state, &recopied, doubt).await?;
    give_up_recopies(flow, state, &mut wishes).await?;
    if !is_sealed {
        // What is captured says whom it is for before anything is read of it.
        begin_capture(flow, flow.source.catalog().await?.as_ref()).await?;
        seal::renew(flow, target.as_ref()).await?;
    }
    runner.is_own.store(true, Ordering::Relaxed);
    Ok((wishes, target))
}

/// A table that was to be crawled anew and is refused nevertheless is not asked for again and again.
async fn give_up_recopies(flow: &Flow, state: &dyn StateStore, wishes: &mut Wishes) -> Result<()> {
    let is_refused = |name: &String| {
        flow.refused.keys().any(|table| flow.routes[*table].shape.table.name.to_string() == *name)
    };
    let given_up: BTreeMap<String, u64> = wishes
        .recopies_open()
        .into_iter()
        .filter(|(name, _)| is_refused(name))
        .map(|(name, times)| (format!("recopy {name}"), times))
        .collect();
    if !given_up.is_empty() {
        *wishes =
            change(state, &flow.name, WISHES, |wishes: &mut Wishes| wishes.done.extend(given_up.clone()))
                .await?;
    }
    Ok(())
}

/// Passes on what is wanted, and notes what was done of it.
async fn pass_wishes_on(
    flow: &Flow,
    gauge: &Gauge,
    state: &dyn StateStore,
    asking: &mut Asking,
) -> Result<Infallible> {
    loop {
        let (wishes, _) = read::<Wishes>(state, &flow.name, WISHES).await?;
        asking.grant(flow, gauge, wishes);
        note_done(flow, state, &gauge.read(flow.clock.as_ref()), &mut asking.asked).await?;
        flow.clock.sleep(BEAT).await;
    }
}

/// What a run was asked for.
struct Asking {
    /// What was wanted when it was asked last.
    granted: Wishes,
    /// Tables to be crawled anew that were described anew before the run began.
    looked: BTreeMap<String, u64>,
    asked: Asked,
    ask: mpsc::UnboundedSender<Request>,
}

impl Asking {
    /// Asks the run for what is wanted and was not asked for yet.
    fn grant(&mut self, flow: &Flow, gauge: &Gauge, wishes: Wishes) {
        let status = gauge.read(flow.clock.as_ref());
        let restarts: Vec<u64> = status.tables.iter().map(|table| table.restarts).collect();
        for request in differences(flow, &self.granted, &wishes, &self.looked, &restarts, &mut self.asked) {
            // Nobody listens any more only when the run is ending.
            let _ = self.ask.send(request);
        }
        self.granted = wishes;
    }
}

/// Notes what was done of what was asked for.
async fn note_done(flow: &Flow, state: &dyn StateStore, status: &Status, asked: &mut Asked) -> Result<()> {
    let done: BTreeMap<String, u64> = asked
        .iter()
        .filter(|(wish, (table, before, _))| {
            let now = &status.tables[*table];
            if wish.starts_with("skip ") {
                now.state == crate::TableState::Skipped
            } else {
                now.restarts > *before
            }
        })
        .map(|(wish, (_, _, times))| (wish.clone(), *times))
        .collect();
    if !done.is_empty() {
        change(state, &flow.name, WISHES, |wishes: &mut Wishes| wishes.done.extend(done.clone())).await?;
        asked.retain(|wish, _| !done.contains_key(wish));
    }
    Ok(())
}

/// Wishes that a run was asked for: the table, how often it was crawled anew before, and how often it was asked for.
type Asked = BTreeMap<String, (usize, u64, u64)>;

/// The requests that lead from what was granted to what is wanted.
fn differences(
    flow: &Flow,
    granted: &Wishes,
    wishes: &Wishes,
    looked: &BTreeMap<String, u64>,
    restarts: &[u64],
    asked: &mut Asked,
) -> Vec<Request> {
    let mut requests = Vec::new();
    let place =
        |name: &String| flow.routes.iter().position(|route| route.shape.table.name.to_string() == *name);
    if wishes.paused != granted.paused {
        requests.push(if wishes.paused { Request::Pause(None) } else { Request::Resume(None) });
    }
    for table in wishes.paused_tables.difference(&granted.paused_tables).filter_map(place) {
        requests.push(Request::Pause(Some(table)));
    }
    for table in granted.paused_tables.difference(&wishes.paused_tables).filter_map(place) {
        requests.push(Request::Resume(Some(table)));
    }
    if wishes.max_rate != granted.max_rate {
        requests.push(Request::MaxRate(wishes.max_rate));
    }
    if wishes.workers != granted.workers || wishes.looks != granted.looks {
        requests.push(Request::Again);
    }
    let skips = wishes.skips.iter().map(|(name, times)| ("skip", name, times));
    let recopies = wishes.recopies.iter().map(|(name, times)| ("recopy", name, times));
    for (verb, name, times) in skips.chain(recopies) {
        let wish = format!("{verb} {name}");
        let Some(table) = place(name) else { continue };
        if wishes.done.get(&wish).is_some_and(|done| done >= times) || asked.contains_key(&wish) {
            continue;
        }
        if verb == "recopy" && looked.get(name) != Some(times) {
            // The table may be another one by now: the next run looks, and then crawls it.
            requests.push(Request::Again);
            continue;
        }
        asked.insert(wish, (table, restarts[table], *times));
        requests.push(if verb == "skip" { Request::Skip(table) } else { Request::Recopy(table) });
    }
    requests
}
