//! What stands in a message on each broker: a page of the documentation, whose rows are what the adapters' codecs write.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};

use tidegate_core::{Channel, Error, Message, Result};

/// The page, from the folder of an adapter or of this crate.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/bindings.md");
/// Has the page written anew, as other pages that tests write.
const WRITE: &str = "TIDEGATE_WRITE_PAGES";

/// A part of what is put on the wire: what it is, its name if there are several, and its bytes.
pub type Part = (&'static str, String, Vec<u8>);

/// The channel that the messages go to.
///
/// # Errors
/// None: its name is a good one.
pub fn golden_channel() -> Result<Channel> {
    Channel::new("orders")
}

/// The messages, by the heads of their columns.
fn samples() -> Result<Vec<(&'static str, Message)>> {
    let mut everything = Message::with_id("7", "/shop", "order.placed")
        .with_subject("order-17")
        .with_time(1_700_000_000_250_000)
        .with_data("application/json", r#"{"total":12}"#)
        .with_header("region", "eu")?
        .with_header("reply_to", "answers")?;
    everything.dataschema = Some("/schemas/order/2".into());
    everything.correlation_id = Some("cart-9".into());
    everything.causation_id = Some("6".into());
    everything.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    everything.tenant = Some("acme".into());
    everything.extensions.set("tracestate", "vendor=1")?;
    let least = Message::with_id("8", "/shop", "order.seen");
    let no_body = Message::with_id("9", "/shop", "order.closed")
        .with_subject("order-17")
        .with_data("text/plain", "")
        .with_header("region", "")?;
    let letters = Message::with_id("10", "/shop", "order.signed")
        .with_subject("50% \"Käse\"")
        .with_data("application/octet-stream", vec![0x00, 0xff, 0x0a, 0x7c])
        .with_header("region", "Århus → 東京")?;
    Ok(vec![
        ("everything", everything),
        ("the least", least),
        ("no body", no_body),
        ("other letters", letters),
    ])
}

/// Has a codec write each message, and compares the parts, in their order, with the binding's table in
/// `docs/reference/bindings.md`; then what it reads of them with the message. With `TIDEGATE_WRITE_PAGES` set, the table is
/// written first.
///
/// # Errors
/// What differs.
pub fn golden(
    binding: &str,
    carry: impl Fn(&Message) -> Result<(Vec<Part>, Message)>,
) -> std::result::Result<(), String> {
    let said = |error: Error| format!("{error:?}");
    let samples = samples().map_err(said)?;
    let mut carried = Vec::new();
    for (name, message) in &samples {
        let (parts, read) = carry(message).map_err(|error| format!("{name}: {error:?}"))?;
        if read != *message {
            return Err(format!("{name}: what is read is {read:?}, and not {message:?}"));
        }
        carried.push(parts);
    }
    compare(binding, &table(&samples, &carried)?).map_err(|error| format!("{PAGE}: {error}"))?
}

/// A part a row, a message a column. The order of the rows is that of each message's parts.
fn table(samples: &[(&str, Message)], carried: &[Vec<Part>]) -> std::result::Result<String, String> {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (column, parts) in carried.iter().enumerate() {
        let mut next = 0;
        for (what, name, bytes) in parts {
            let label = if name.is_empty() { (*what).to_owned() } else { format!("{what} `{name}`") };
            next = match rows.iter().position(|(known, _)| *known == label) {
                Some(at) if at < next => return Err(format!("{label} comes twice, or in another order")),
                Some(at) => at + 1,
                None => {
                    rows.insert(next, (label, vec![String::new(); carried.len()]));
                    next + 1
                }
            };
            rows[next - 1].1[column] = cell(bytes);
        }
    }
    let heads: String = samples.iter().map(|(name, _)| format!(" {name} |")).collect();
    let mut text = format!("| |{heads}\n|{}\n", "---|".repeat(samples.len() + 1));
    for (label, cells) in rows {
        let cells: String = cells.iter().map(|cell| format!(" {cell} |")).collect();
        text += &format!("| {label} |{cells}\n");
    }
    Ok(text)
}

/// Text as it is; what is none, or would end the cell, as hexadecimal digits.
fn cell(bytes: &[u8]) -> String {
    let is_plain = |text: &&str| !text.chars().any(|c| c.is_control() || "|`".contains(c));
    match std::str::from_utf8(bytes).ok().filter(is_plain) {
        Some("") => "*empty*".to_owned(),
        Some(text) => format!("`{text}`"),
        None => {
            let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("bytes `{}`", digits.join(" "))
        }
    }
}

/// Compares with the page's first table under the heading, whose other words stay.
fn compare(binding: &str, table: &str) -> std::io::Result<std::result::Result<(), String>> {
    let is_written = std::env::var_os(WRITE).is_some();
    let mut file = File::options().read(true).write(is_written).open(PAGE)?;
    // Other adapters' tests may write at the same time.
    if is_written {
        file.lock()?
    } else {
        file.lock_shared()?
    }
    let mut page = String::new();
    file.read_to_string(&mut page)?;
    let Some((before, section)) = page.split_once(&format!("\n## {binding}\n")) else {
        return Ok(Err(format!("the page has no heading {binding}")));
    };
    let end = section.find("\n## ").unwrap_or(section.len());
    let Some(begin) = section[..end].find("\n| |").map(|at| at + 1) else {
        return Ok(Err(format!("the page has no table under {binding}")));
    };
    let rows = section[begin..].split_inclusive('\n').take_while(|line| line.starts_with('|'));
    let length: usize = rows.map(str::len).sum();
    if section[begin..begin + length] == *table {
        return Ok(Ok(()));
    }
    if !is_written {
        let found = &section[begin..begin + length];
        let row = |text: &str, of: &str| text.lines().find(|line| !of.contains(line)).map(str::to_owned);
        let differs =
            format!("{:?} stands in the page, and {:?} is written", row(found, table), row(table, found));
        return Ok(Err(format!("{binding}: {differs}; write it anew with {WRITE}=1 if that is meant")));
    }
    let written =
        format!("{before}\n## {binding}\n{}{table}{}", &section[..begin], &section[begin + length..]);
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(written.as_bytes())?;
    Ok(Ok(()))
}
