//! `verify`: two equal tables, and edits of the kind that a comparison of values by their text or as numbers misses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::FlowName;
use tidegate_flow::verify::{Kind, Report as Found, Verification, verify};
use tokio::time::Instant;

use crate::ground::{Ground, connect};
use crate::peers::reladiff::{self, Reladiff};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours, peers};

const COLUMNS: &[&str] = &["s", "n", "f", "ts", "j", "b"];
/// What is changed in the target: the key, the column, and the assignment.
const EDITS: &[(u64, &str, &str, &str)] = &[
    (11, "n", "n = n * 1.0", "the scale of a numeric"),
    (222, "f", "f = '-0'", "the sign of a zero"),
    (3_333, "j", "j = replace(j::text, ': ', ':')::json", "a space in a json"),
    (4_444, "b", "b = set_bit(b, 3, 1 - get_bit(b, 3))", "a bit of a bytea"),
    // The peer has to find this one, or it did not compare.
    (LETTER, "s", "s = s || 'x'", "a letter of a text"),
];
const LETTER: u64 = 5_555;

/// Compares, plants the edits, and compares again.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let rows = ground.size.rows;
    let url = ground.create_at_source("verify").await?;
    let target = ground.target.create_database("verify").await?;
    let table =
        "CREATE TABLE bench (id int8 PRIMARY KEY, s text NOT NULL, n numeric NOT NULL, f float8 NOT NULL,
        ts timestamptz NOT NULL, j json NOT NULL, b bytea NOT NULL)";
    connect(&target).await?.batch_execute(table).await?;
    let client = connect(&url).await?;
    let fill = format!(
        "INSERT INTO bench SELECT g, repeat(md5(g::text), 2), g * 1.0, 0, timestamptz '2024-01-01' + g * interval '1 s',
        json_build_object('a', g), decode(md5(g::text), 'hex') FROM generate_series(1, {rows}) g"
    );
    client.batch_execute(&format!("{table}; {fill}")).await?;
    peers::psql_pipe(&url, &target).await?;
    for url in [&url, &target] {
        connect(url).await?.batch_execute("VACUUM (ANALYZE) bench").await?;
    }
    let peer = Reladiff::find(ground.size.may_fetch);
    if peer.is_ok() {
        ground.names("reladiff", reladiff::VERSION);
    }
    let (mut own, mut theirs) = (Samples::default(), Samples::default());
    for (_, counts) in ground.size.runs() {
        let start = Instant::now();
        let found = compare(&url, &target).await?;
        own.push_if(counts, start.elapsed().as_secs_f64());
        equal(found.compared, rows)?;
        if !found.equal {
            return Err(format!("equal tables are called different: {found:?}").into());
        }
        if let Ok(peer) = &peer {
            let start = Instant::now();
            let found = peer.compare(&url, &target, "bench", COLUMNS).await?;
            theirs.push_if(counts, start.elapsed().as_secs_f64());
            equal(found.len() as u64, 0)?;
        }
    }
    let note = plant(&url, &target, peer.as_ref().ok()).await?;
    let against = format!("reladiff {}", reladiff::VERSION);
    let row = Row::lower("verify", "s", &own, &against, &theirs, 3.0);
    Ok(vec![row.measured_or(&peer).with_note(note)])
}

/// Plants the edits. Each has to be found, in its column, and nothing else.
async fn plant(url: &str, target: &str, peer: Option<&Reladiff>) -> Result<String> {
    let client = connect(target).await?;
    for (key, _, assignment, _) in EDITS {
        let changed = client.execute(&format!("UPDATE bench SET {assignment} WHERE id = {key}"), &[]).await?;
        equal(changed, 1)?;
    }
    let found = compare(url, target).await?;
    let named: BTreeMap<_, _> =
        found.rows.iter().map(|row| (row.key.get("id").cloned(), (row.kind, row.columns.clone()))).collect();
    let planted: BTreeMap<_, _> = EDITS
        .iter()
        .map(|(key, column, _, _)| (Some(key.to_string()), (Kind::Different, vec![(*column).to_owned()])))
        .collect();
    if named != planted || !found.complete {
        return Err(format!("planted {planted:?}, found {found:?}").into());
    }
    let kinds: Vec<&str> = EDITS.iter().map(|(_, _, _, kind)| *kind).collect();
    let mut note = format!("ours finds every planted edit: {}", kinds.join(", "));
    if let Some(peer) = peer {
        let theirs = peer.compare(url, target, "bench", COLUMNS).await?;
        if !theirs.contains(&LETTER.to_string()) {
            return Err("reladiff does not find a letter of a text".into());
        }
        let seen = EDITS.iter().filter(|(key, ..)| theirs.contains(&key.to_string())).count();
        note.push_str(&format!("; reladiff finds {seen} of {}", EDITS.len()));
    }
    Ok(note)
}

async fn compare(url: &str, target: &str) -> Result<Found> {
    let name = FlowName::new("verify")?;
    let flow = ours::flow(name.as_str(), ours::open(url)?, ours::open(target)?).await?;
    let state = flow.target.state().await?;
    let verification = Verification {
        name: &name,
        source: flow.source.as_ref(),
        target: flow.target.as_ref(),
        routes: &flow.routes,
        run: None,
        patience: Duration::from_secs(60),
        clock: flow.clock.as_ref(),
        reading: Arc::default(),
    };
    Ok(Box::pin(verify(&verification, &Arc::clone(&state))).await?)
}
