//! `tidegate doctor` and `tidegate grants`.

use std::process::ExitCode;

use percent_encoding::percent_decode_str;
use tidegate_core::port::{Broker, Finding, Side, Store, Weight};
use tidegate_core::{Endpoint, Result};
use tidegate_flow::Status;
use tidegate_flow::run::{STATUS, read};

use super::asked::{Asked, File};
use super::status::{Kept, kept};
use crate::arguments::{Common, SideWord};
use crate::registry::Registry;
use crate::render::{count, say, table};
use crate::settings::Settings;

/// From this share of its bound on a run warns of what the source keeps.
const MUCH: f64 = 0.5;

pub(super) async fn doctor(settings: &Settings, json: bool) -> Result<ExitCode> {
    let mut worst = Weight::Good;
    let mut documents = Vec::new();
    for (side, word, store) in
        [(Side::Source, "source", &settings.source), (Side::Target, "target", &settings.target)]
    {
        let mut findings = examine(store.as_ref(), side).await?;
        if side == Side::Source {
            findings.extend(examine_kept(settings).await);
        }
        worst = findings.iter().map(|finding| finding.weight).fold(worst, Weight::max);
        show(word, &store.location(), &findings, json, &mut documents);
    }
    if let Some(via) = &settings.via {
        let findings = examine_broker(via.broker.as_ref()).await?;
        worst = findings.iter().map(|finding| finding.weight).fold(worst, Weight::max);
        show("via", &via.broker.location(), &findings, json, &mut documents);
    }
    if json {
        say!("{}", serde_json::Value::from(documents));
    } else {
        say!(
            "{}",
            match worst {
                Weight::Good => "nothing to mend",
                Weight::Notice => "nothing is lost as it is; see what is marked with !",
                Weight::Loss =>
                    "data can be lost, or the migration cannot work: mend what is marked with LOSS",
            }
        );
    }
    Ok(ExitCode::from(if worst == Weight::Loss { 3 } else { 0 }))
}

/// One broker: what it is, what it can do, and how what it has confirmed can be lost.
pub(super) async fn broker(registry: &Registry, url: &str, common: &Common) -> Result<ExitCode> {
    let asked = Asked::open(common, registry, url, File::IsThere)?;
    let (broker, json) = (&asked.broker, common.json);
    let examined = examine_settings(broker.as_ref(), Weight::Loss);
    let mut findings = asked.within("looking at its settings", examined).await?;
    let is_unsafe = findings.iter().any(|finding| finding.weight == Weight::Loss);
    let capabilities = broker.capabilities();
    for case in capabilities.loss {
        findings.push(Finding::new("what is lost when", case.text, false, Weight::Notice, case.avoid));
    }
    for (name, how) in capabilities.rows() {
        // Nobody lacks it: what handles messages publishes a dead letter, and then settles.
        let is_good = how.is_there() || name == "dead_letter";
        findings.push(Finding::new(name, how, is_good, Weight::Notice, ""));
    }
    let mut documents = Vec::new();
    show("broker", &broker.location(), &findings, json, &mut documents);
    if json {
        say!("{}", serde_json::Value::from(documents));
    } else if is_unsafe {
        say!("messages that were confirmed can be lost with the settings that are marked with LOSS");
    } else {
        say!("its settings are safe; what is marked with ! is so with every server of this kind");
    }
    Ok(ExitCode::from(if is_unsafe { 3 } else { 0 }))
}

fn show(side: &str, what: &str, findings: &[Finding], json: bool, documents: &mut Vec<serde_json::Value>) {
    if json {
        let findings: Vec<_> = findings.iter().map(document).collect();
        documents.push(serde_json::json!({"side": side, "store": what, "findings": findings}));
        return;
    }
    say!("{side} {what}");
    let rows = findings.iter().map(|finding| {
        vec![
            format!("  {}", mark(finding.weight)),
            finding.what.clone(),
            finding.found.clone(),
            finding.advice.clone(),
        ]
    });
    say!("{}", table(&["  ", "", "", ""], rows.collect()));
}

/// What a broker loses costs a migration time and no row: its calls return when their effect is in the target.
async fn examine_broker(broker: &dyn Broker) -> Result<Vec<Finding>> {
    let mut findings = examine_settings(broker, Weight::Notice).await?;
    let processes = broker.capabilities().processes;
    let advice = "--role source and target need a broker that several processes reach";
    findings.push(Finding::new("two processes", processes, processes.is_there(), Weight::Notice, advice));
    Ok(findings)
}

/// What a broker is, and how heavy each of its unsafe settings is.
async fn examine_settings(broker: &dyn Broker, weight: Weight) -> Result<Vec<Finding>> {
    let effective = broker.probe().await?;
    let mut findings = vec![
        Finding::new("version", effective.version, true, Weight::Notice, ""),
        Finding::new("stored means", broker.capabilities().confirm, true, Weight::Notice, ""),
    ];
    let (warnings, notes) = (effective.warnings.into_iter(), effective.notes.into_iter());
    findings.extend(warnings.map(|warning| Finding::new("setting", warning, false, weight, "")));
    findings.extend(notes.map(|note| Finding::new("note", note, false, Weight::Notice, "")));
    Ok(findings)
}

/// What the source keeps for a migration that has begun, also while nobody runs it.
async fn examine_kept(settings: &Settings) -> Option<Finding> {
    let status = match settings.state().await {
        Ok(state) => read::<Status>(state.as_ref(), &settings.name, STATUS).await.unwrap_or_default().0,
        Err(_) => Status::default(),
    };
    let Kept { held_bytes, used } = kept(settings, &status).await.ok()?;
    if held_bytes == 0 && used == 0.0 {
        return None;
    }
    let what = format!("kept for {}", settings.name);
    let found = format!("{} bytes, {:.0} % of what it may", count(held_bytes), used * 100.0);
    let advice = "if nobody runs it: `tidegate migrate run` catches up, `tidegate migrate abort` gives it up";
    Some(Finding::new(what, found, used < MUCH, Weight::Notice, advice))
}

async fn examine(store: &dyn Store, side: Side) -> Result<Vec<Finding>> {
    store.examiner().await?.examine(side).await
}

fn mark(weight: Weight) -> &'static str {
    match weight {
        Weight::Good => "ok",
        Weight::Notice => "!",
        Weight::Loss => "LOSS",
    }
}

fn document(finding: &Finding) -> serde_json::Value {
    let weight = match finding.weight {
        Weight::Good => "good",
        Weight::Notice => "notice",
        Weight::Loss => "loss",
    };
    serde_json::json!({"what": finding.what, "found": finding.found, "weight": weight, "advice": finding.advice})
}

pub(super) async fn grants(
    registry: &Registry,
    url: &str,
    side: SideWord,
    user: Option<&str>,
    json: bool,
) -> Result<ExitCode> {
    let side = match side {
        SideWord::Source => Side::Source,
        SideWord::Target => Side::Target,
    };
    let endpoint = Endpoint::parse(url)?;
    let store = registry.open(&endpoint)?;
    let of_url =
        endpoint.url().map(|url| percent_decode_str(url.username()).decode_utf8_lossy().into_owned());
    let of_url = of_url.ok().filter(|user| !user.is_empty());
    let user = user.or(of_url.as_deref()).unwrap_or("tidegate");
    let script = store.examiner().await?.grants(side, user);
    if json {
        say!("{}", serde_json::json!({"script": script}));
    } else {
        say!("{}", script.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
