//! `tidegate doctor` and `tidegate grants`.

use std::process::ExitCode;

use tidegate_core::port::{Finding, Side, Store, Weight};
use tidegate_core::{Endpoint, Result};

use crate::arguments::SideWord;
use crate::registry::Registry;
use crate::render::table;
use crate::settings::Settings;

#[allow(clippy::print_stdout, reason = "the findings are the answer")]
pub(super) async fn doctor(settings: &Settings, json: bool) -> Result<ExitCode> {
    let mut worst = Weight::Good;
    let mut documents = Vec::new();
    for (side, word, store) in
        [(Side::Source, "source", &settings.source), (Side::Target, "target", &settings.target)]
    {
        let findings = examine(store.as_ref(), side).await?;
        worst = findings.iter().map(|finding| finding.weight).fold(worst, Weight::max);
        if json {
            let findings: Vec<_> = findings.iter().map(document).collect();
            documents
                .push(serde_json::json!({"side": word, "store": store.location(), "findings": findings}));
        } else {
            println!("{word} {}", store.location());
            let rows = findings.iter().map(|finding| {
                vec![
                    format!("  {}", mark(finding.weight)),
                    finding.what.clone(),
                    finding.found.clone(),
                    finding.advice.clone(),
                ]
            });
            println!("{}", table(&["  ", "", "", ""], rows.collect()));
        }
    }
    if json {
        println!("{}", serde_json::Value::from(documents));
    } else {
        println!(
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

#[allow(clippy::print_stdout, reason = "the script is the answer")]
pub(super) async fn grants(registry: &Registry, url: &str, side: SideWord, user: &str) -> Result<ExitCode> {
    let side = match side {
        SideWord::Source => Side::Source,
        SideWord::Target => Side::Target,
    };
    let store = registry.open(&Endpoint::parse(url)?)?;
    print!("{}", store.examiner().await?.grants(side, user));
    Ok(ExitCode::SUCCESS)
}
