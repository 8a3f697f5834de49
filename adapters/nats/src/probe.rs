//! What of a live server loses messages.

use async_nats::jetstream::account::Account;
use async_nats::jetstream::stream::{Info, StorageType};
use serde::Deserialize;
use tidegate_core::Result;
use tidegate_core::port::Effective;

use crate::config::Config;
use crate::connect::Link;
use crate::log::DOCUMENTS;

/// A page of streams.
#[derive(Deserialize)]
struct Page {
    total: usize,
    #[serde(default)]
    streams: Vec<Info>,
}

pub(crate) async fn probe(link: &Link, config: &Config) -> Result<Effective> {
    let _account: Account = link.get("INFO", &(), "ask for the account").await?;
    let server = link.client().server_info();
    let mut warnings = vec![
        "whether sync_interval is always cannot be asked over this connection: unless it is, what was confirmed in the last two \
         minutes is lost with the power"
            .to_owned(),
    ];
    let mut notes = config.access.notes();
    if server.cluster.is_none() {
        notes.push(
            "the server is in no cluster: its streams have one replica and are away while it is".to_owned(),
        );
    }
    for stream in streams(link).await? {
        let (name, stream) = (&stream.config.name, &stream.config);
        let told = |what: &str| format!("stream {name}: {what}");
        if stream.storage == StorageType::Memory {
            warnings.push(told("its storage is memory: what was confirmed is lost when the server ends"));
        }
        if server.cluster.is_some() && stream.num_replicas < 2 {
            warnings.push(told("it has one replica: it is away, or gone, with its server"));
        }
        if stream.max_messages > 0 || stream.max_bytes > 0 || !stream.max_age.is_zero() {
            warnings.push(told(
                "it has limits of its own: the server may remove what nobody has settled, or refuse messages in the midst of a window",
            ));
        }
        if name != DOCUMENTS && stream.duplicate_window < config.dedupe {
            notes.push(told(&format!(
                "ids of messages are known for {:?}, and {:?} are asked for",
                stream.duplicate_window, config.dedupe
            )));
        }
    }
    Ok(Effective { version: format!("NATS {}", server.version), warnings, notes })
}

/// The streams that are ours.
async fn streams(link: &Link) -> Result<Vec<Info>> {
    let mut all = Vec::new();
    for subject in ["tidegate.>", "$KV.tidegate.>"] {
        let mut offset = 0;
        loop {
            let what = serde_json::json!({ "offset": offset, "subject": subject });
            let page: Page = link.get("STREAM.LIST", &what, "look at the streams").await?;
            offset += page.streams.len();
            let is_last = page.streams.is_empty() || offset >= page.total;
            all.extend(page.streams);
            if is_last {
                break;
            }
        }
    }
    Ok(all)
}
