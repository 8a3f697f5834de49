//! `tidegate migrate run`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Code, Verdict, code};
use tidegate_core::{Error, Ids, Result, Scope, SystemIds};
use tidegate_flow::follow::known;
use tidegate_flow::run::{WISHES, Wishes, change, run as run_flow};
use tidegate_flow::verify::{Reading, Report};
use tidegate_flow::{Ended, Flow, Gauge, PlannedTable, Status, TableState, Until, seal, via};
use tokio_util::sync::CancellationToken;

use super::{noted, plan, serve, verify};
use crate::arguments::{Common, ROWS_LISTED, RoleWord, UntilWord};
use crate::listen::{Listener, bind};
use crate::progress::Progress;
use crate::render::{exit_status, failure_with, say, tell};
use crate::settings::Settings;

/// How often the progress is drawn.
const DRAW: Duration = Duration::from_millis(250);

/// How often the runner is asked to look at both sides anew before a difference in shape counts, and how long it has.
const LOOKS_MAX: u32 = 5;
const LOOK_WAIT: Duration = Duration::from_secs(2);

pub(super) async fn run(
    settings: &Settings,
    role: RoleWord,
    until: Option<UntilWord>,
    listen: Option<SocketAddr>,
    common: &Common,
) -> Result<ExitCode> {
    if role != RoleWord::All {
        serve::require_processes(settings)?;
    }
    let port = bind(listen).await?;
    let state = patiently(settings, || settings.state()).await?;
    let flow = prepare(settings).await?;
    let gauge = Arc::new(Gauge::new(&flow.routes, &flow.options));
    let listener = Listener::new(Arc::clone(&gauge), Arc::clone(&flow.clock));
    let stop = CancellationToken::new();
    let mut scope = Scope::new();
    scope.spawn(stop_on_signal(stop.clone()));
    if let Some(port) = port {
        scope.spawn(listener.clone().serve(port));
    }
    // The other half, should it be in this process too.
    let (mut far, far_stop) = (Scope::new(), CancellationToken::new());
    if let (Some(via), RoleWord::All) = (&settings.via, role) {
        let (name, target, via, stop) =
            (settings.name.clone(), Arc::clone(&settings.target), via.clone(), far_stop.clone());
        far.spawn(async move { via::serve(&name, &target, &via, &stop).await });
    }
    let holder = format!("{}:{}", std::process::id(), SystemIds.next().simple());

    // A comparison needs the run to go on: rows are believed to differ only if they still do when changes have passed.
    let wanted = if until == Some(UntilWord::CaughtUp) { Until::CaughtUp } else { Until::Stopped };
    let mut progress = Progress::new(common.quiet);
    let running = run_flow(
        &flow,
        wanted,
        &gauge,
        &state,
        &holder,
        settings.timeout.max(Duration::from_secs(60)),
        &stop,
    );
    let reading = Arc::default();
    let comparing = async {
        match until {
            Some(UntilWord::Verified) => compare_when_crawled(settings, &gauge, &reading, &flow).await,
            _ => std::future::pending().await,
        }
    };
    tokio::pin!(running, comparing);
    let mut compared = None;
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut running => break ended,
            report = &mut comparing, if compared.is_none() => {
                compared = Some(report);
                stop.cancel();
            }
            // Who asked to be told is not left without.
            Some(broken) = scope.next() => break broken.map(|()| Ended::Stopped),
            Some(broken) = far.next() => break broken.map(|()| Ended::Stopped),
            () = flow.clock.sleep(DRAW) => {
                listener.is_alive();
                // One that broke is tried again as long as it has not ended.
                let status = Status { running: true, ..gauge.read(flow.clock.as_ref()) };
                progress.show(&status, &reading, flow.clock.elapsed());
            }
        }
    };
    let status = Status { running: ended.is_ok(), ..gauge.read(flow.clock.as_ref()) };
    progress.show(&status, &reading, flow.clock.elapsed());
    progress.finish();
    far_stop.cancel();
    far.join().await?;
    match ended? {
        Ended::Stopped if compared.is_none() => {
            let what = if status.connected {
                "stopped on request; everything in flight is in the target"
            } else {
                "stopped on request while the run was broken; what the target has not, the next run reads again"
            };
            return Err(Error::new(code::STOPPED, what).hint("the same command goes on from here"));
        }
        Ended::Stopped | Ended::CaughtUp | Ended::Again => {}
    }
    if let Some(table) = status.tables.iter().find(|table| table.state == TableState::Failed) {
        let why = table.error.clone().unwrap_or_default();
        // The reason has its own code, whose page helps.
        let (own, what) = Code::of_line(&why).unwrap_or((code::STORE_FAILED, &why));
        let first = if own == code::TRANSFORM_FAILED { "correct the mapping or the row, then: " } else { "" };
        let error = Error::new(own, format!("table {} stopped: {what}", table.source))
            .hint(format!("{first}tidegate migrate recopy --table {}", table.source));
        // What was found in the others is not kept back.
        if let Some(Ok(report)) = compared {
            verify::show(report, true, ROWS_LISTED, common.json)?;
        }
        // It failed while it ran, whatever the reason is where nothing runs yet.
        return Ok(failure_with(&error, common.json, 1));
    }
    if let Some(compared) = compared {
        return verify::show(compared?, true, ROWS_LISTED, common.json);
    }
    if common.json {
        let (name, changes) = (settings.name.as_str(), status.changes_applied);
        let rows: u64 = status.tables.iter().map(|table| table.rows_crawled).sum();
        let ended = "caught-up";
        say!(
            "{}",
            serde_json::json!({"name": name, "ended": ended, "rows_crawled": rows, "changes_applied": changes})
        );
    }
    tell(format_args!("caught up; next: tidegate migrate verify"));
    Ok(ExitCode::SUCCESS)
}

/// Compares both sides as soon as every table is crawled or stopped, while the run goes on.
async fn compare_when_crawled(
    settings: &Settings,
    gauge: &Gauge,
    reading: &Arc<Reading>,
    flow: &Flow,
) -> Result<Report> {
    let mut looks = 0;
    loop {
        let status = gauge.read(flow.clock.as_ref());
        if status.is_crawled() && status.drained {
            let report = match verify::compare(settings, Some(gauge), reading).await {
                // The source may have got a column that no change has told of yet: the runner is asked to look.
                Err(error) if error.code() == code::TARGET_DIFFERS && looks < LOOKS_MAX => {
                    looks += 1;
                    let state = settings.state().await?;
                    change(state.as_ref(), &settings.name, WISHES, |wishes: &mut Wishes| wishes.looks += 1)
                        .await?;
                    flow.clock.sleep(LOOK_WAIT).await;
                    continue;
                }
                report => report?,
            };
            if report.unsettled == 0 || report.missing + report.extra + report.different > 0 {
                return Ok(report);
            }
            // Nothing is wrong, and some rows never came to rest: neither equal nor different.
            tracing::info!(rows = report.unsettled, "rows change all the time; comparing again");
        }
        flow.clock.sleep(DRAW).await;
    }
}

/// Plans, and creates what is missing in the target. A table that the flow knows already skips the guards for new ones;
/// what became of it since is looked at when it runs.
pub(super) async fn prepare(settings: &Settings) -> Result<Flow> {
    let state = settings.state().await?;
    let record = known(state.as_ref(), &settings.name).await?;
    let out = plan::left_out(state.as_ref(), &settings.name, &record).await?;
    let mut wanted = settings.wanted.clone();
    plan::without(&mut wanted, &record, &out);
    noted::require_same(settings, state.as_ref(), &record, &wanted).await?;
    let mut plan = patiently(settings, || plan::make_clear(settings, &wanted, &record, &out)).await?;
    if let Some(obstacle) = plan::unused_conversions(&wanted, &plan).into_iter().next()
        && record.is_empty()
    {
        return Err(obstacle.error);
    }
    // Before anything is made: what the source keeps under this name may be for another target.
    let (source, records) = (settings.source.catalog().await?, settings.target.state().await?);
    seal::check(&settings.name, source.as_ref(), records.as_ref()).await?;
    let is_new = |table: &&PlannedTable| !record.contains_key(&table.route.shape.table.name.to_string());
    let targets: Vec<_> =
        plan.tables.iter().filter(is_new).map(|table| Arc::clone(&table.route.target)).collect();
    settings.target.catalog().await?.create(&targets).await?;
    noted::note(settings, state.as_ref(), &plan).await?;
    // They stay a part of the flow: that they are left out is on its record.
    let out = record.values().filter(|known| out.contains(&known.source.name));
    plan.tables.extend(out.map(|known| known.planned(source.as_ref())));
    let name = |planned: &PlannedTable| planned.route.shape.table.name.clone();
    plan.tables.sort_by_key(name);
    Ok(settings.flow(&plan))
}

/// Asks again until the server answers or the time is over. What cannot help is not tried again.
pub(super) async fn patiently<T, F: Future<Output = Result<T>>>(
    settings: &Settings,
    ask: impl Fn() -> F,
) -> Result<T> {
    let clock = tidegate_core::SystemClock::shared();
    let mut said = false;
    loop {
        match ask().await {
            Err(error) if error.verdict() != Verdict::Never && clock.elapsed() < settings.timeout => {
                if !said {
                    tell(format_args!("waiting up to {} s: {error}", settings.timeout.as_secs()));
                    said = true;
                }
                clock.sleep(Duration::from_millis(500)).await;
            }
            outcome => return outcome,
        }
    }
}

/// The first signal drains; the second one ends the process at once, with nothing lost.
#[expect(clippy::exit, reason = "whatever still waits is not to be waited for")]
pub(super) async fn stop_on_signal(stop: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let broken = |e: std::io::Error| Error::new(code::INTERNAL, "signals cannot be received").because(e);
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    for first in [true, false] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if first {
            tell(format_args!("stopping: what is in flight is finished first; once more to end at once"));
            stop.cancel();
        }
    }
    // What the target has is whole: nothing is written on the way out.
    std::process::exit(i32::from(exit_status(code::STOPPED.kind())))
}
