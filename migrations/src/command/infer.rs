//! `tidegate plan --infer`: a mapping for documents, made from some of them.

use std::process::ExitCode;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Crawler, KeyRange, Limit, Obstacle, Record};
use tidegate_core::{Error, Result, Rows, Shape, TableName, Value};

use crate::arguments::{Common, Flags};
use crate::mapping::is_document;
use crate::registry::Registry;
use crate::render::{count, say};
use crate::sample::{Found, Sample, quoted};
use crate::settings;

/// Places of a collection that documents are read from, so that old and new ones are among them.
const PLACES: u64 = 16;
/// Documents of one read at most.
const READ_MAX: u64 = 1_000;
/// Bytes of documents read at a time.
const READ_BYTES: usize = 8 << 20;

/// What was found in a collection.
struct Collection {
    name: String,
    documents_estimated: u64,
    documents: u64,
    columns: Vec<Found>,
    left: usize,
}

pub(super) async fn infer(
    common: &Common,
    flags: &Flags,
    registry: &Registry,
    documents: u64,
) -> Result<ExitCode> {
    let (source, wanted) = settings::unmapped(common, flags, registry)?;
    let catalog = source.catalog().await?;
    let (tables, obstacles) = catalog.describe(&wanted).await?;
    // What stands in the way of a table that is there is for the plan to say.
    let is_there = |name: &TableName| tables.iter().any(|table| table.name == *name);
    let others = |obstacle: &Obstacle| !obstacle.table.as_ref().is_some_and(is_there);
    if let Some(obstacle) = obstacles.into_iter().find(others) {
        return Err(obstacle.error);
    }
    if let Some(table) = tables.iter().find(|table| !table.columns.iter().any(is_document)) {
        let text = format!("--infer is for documents, and {} has columns of its own", table.name);
        return Err(Error::new(code::CONFIG_INVALID, text)
            .with("source", source.location())
            .hint("leave --infer out: tidegate plan shows the columns"));
    }
    if tables.is_empty() {
        return Err(Error::new(code::CONFIG_INVALID, "--infer is for documents, and there are none")
            .with("source", source.location()));
    }
    let mut crawler = source.crawler().await?;
    let mut collections = Vec::new();
    for table in tables {
        let shape = Shape { codec: catalog.codec(&table), table: Arc::new(table) };
        let sample = read(crawler.as_mut(), &shape, documents).await?;
        let (columns, left) = sample.columns();
        collections.push(Collection {
            name: shape.table.name.to_string(),
            documents_estimated: shape.table.rows_estimated,
            documents: sample.documents,
            columns,
            left,
        });
    }
    if common.json {
        say!("{}", json(&collections));
    } else {
        say!("{}", toml(&collections).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads up to so many documents, in equal parts from places all over the collection.
async fn read(crawler: &mut dyn Crawler, shape: &Shape, documents: u64) -> Result<Sample> {
    let mut sample = Sample::default();
    let places = usize::try_from(documents.min(PLACES)).unwrap_or(1);
    let mut ranges = crawler.split(&shape.table, places).await?;
    // A place that has fewer leaves its part to the others.
    while !ranges.is_empty() && sample.documents < documents {
        let part = (documents - sample.documents).div_ceil(ranges.len() as u64).min(READ_MAX);
        let mut rest = Vec::new();
        for range in ranges {
            let wanted = part.min(documents - sample.documents);
            if wanted == 0 {
                break;
            }
            let mut rows = Rows::new();
            let wanted = usize::try_from(wanted).unwrap_or(1);
            let chunk = crawler
                .read(&shape.table, &range, Limit { rows: wanted, bytes: READ_BYTES }, &mut rows)
                .await?;
            for row in rows.iter() {
                let record = Record::new(shape, row);
                let at = record.columns().iter().position(is_document);
                if let Some(Value::Json(document)) = at.map(|at| record.value_at(at)).transpose()? {
                    sample.add(&document)?;
                }
            }
            rest.extend(chunk.next.map(|next| KeyRange { after: Some(next), ..range }));
        }
        ranges = rest;
    }
    Ok(sample)
}

fn toml(collections: &[Collection]) -> String {
    let mut lines = vec![
        "# Columns for the fields of documents, by a sample. Whatever a column does not have stays in `document`.".to_owned(),
        "# For the file of --config, or one for --transform.".to_owned(),
    ];
    for collection in collections {
        let (read, there) = (count(collection.documents), count(collection.documents_estimated));
        lines.push(String::new());
        lines.push(format!("# {read} documents were read, of about {there}."));
        if collection.columns.is_empty() {
            lines.push(format!("# {} needs no mapping.", quoted(&collection.name)));
            continue;
        }
        lines.push("[[map]]".to_owned());
        lines.push(format!("table = {}", quoted(&collection.name)));
        lines.push(String::new());
        lines.push("[map.compute]".to_owned());
        lines.extend(collection.columns.iter().map(line));
        if collection.left > 0 {
            lines.push(format!("# {} fields more, of the rarest, have no column.", collection.left));
        }
    }
    lines.join("\n") + "\n"
}

fn line(found: &Found) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let name = if found.name.bytes().all(is_bare) { found.name.clone() } else { quoted(&found.name) };
    let value = &found.compute.value;
    // Without escapes where that is possible, since the expression has quotes and escapes of its own.
    let value = if value.contains(|c: char| c == '\'' || c.is_control()) {
        quoted(value)
    } else {
        format!("'{value}'")
    };
    let kind = serde_json::json!(found.compute.kind);
    let seen: Vec<String> = found.seen.iter().map(|(word, times)| format!("{times} {word}")).collect();
    let mixed = if found.is_mixed() { "mixed: " } else { "" };
    let note = if seen.len() > 1 { format!(" # {mixed}{}", seen.join(", ")) } else { String::new() };
    format!("{name} = {{ type = {kind}, value = {value} }}{note}")
}

fn json(collections: &[Collection]) -> serde_json::Value {
    let (mut maps, mut sampled) = (Vec::new(), serde_json::Map::new());
    for collection in collections {
        let columns = || collection.columns.iter();
        let compute: serde_json::Map<_, _> =
            columns().map(|found| (found.name.clone(), serde_json::json!(found.compute))).collect();
        let seen: serde_json::Map<_, _> =
            columns().map(|found| (found.name.clone(), serde_json::json!(found.seen))).collect();
        if !compute.is_empty() {
            maps.push(serde_json::json!({"table": collection.name, "compute": compute}));
        }
        let of = serde_json::json!({
            "documents": collection.documents, "documents_estimated": collection.documents_estimated,
            "seen": seen, "fields_left": collection.left,
        });
        sampled.insert(collection.name.clone(), of);
    }
    serde_json::json!({"map": maps, "sampled": sampled})
}
