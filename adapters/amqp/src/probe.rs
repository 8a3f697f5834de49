//! What of a server is unsafe, as far as a client can see.

use std::net::IpAddr;

use serde_json::Value as Json;
use tidegate_core::Result;
use tidegate_core::port::Effective;

use crate::artemis::{Management, Question};
use crate::config::Config;

pub(crate) async fn probe(config: &Config, management: &Management) -> Result<Effective> {
    let found = management.tell(&[Question::version()], "look at the server").await?;
    let version = found.first().and_then(Json::as_str).unwrap_or("unknown").to_owned();
    let mut warnings = Vec::new();
    let is_here = config.host == "localhost"
        || config.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !config.has_tls && !is_here {
        warnings.push(
            "the connection is not encrypted, and the server is another machine: write artemiss://"
                .to_owned(),
        );
    }
    Ok(Effective { version: format!("Artemis {version}"), warnings })
}
