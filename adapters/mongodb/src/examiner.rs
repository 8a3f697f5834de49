//! What the server's settings mean for a flow, and how far its log still reaches back.

use async_trait::async_trait;
use mongodb::bson::{Document, Timestamp, doc};
use tidegate_core::port::{Examiner, Finding, Side, Strain, Weight};
use tidegate_core::{FlowName, Position, Result};

use crate::error::During;
use crate::store::{MongoStore, is_new_enough};
use crate::stream;

/// A log that reaches back less is soon gone when a run stops.
const WINDOW_HOURS: f64 = 24.0;

impl MongoStore {
    /// The times of the first and the last entry of the log.
    async fn log(&self) -> Result<Option<(Timestamp, Timestamp)>> {
        let database = self.database().await?;
        let log = database.client().database("local").collection::<Document>("oplog.rs");
        let mut ends = Vec::new();
        for order in [1, -1] {
            let found =
                log.find_one(doc! {}).sort(doc! { "$natural": order }).await.during("look at the log")?;
            ends.extend(found.and_then(|entry| entry.get_timestamp("ts").ok()));
        }
        Ok(match ends[..] {
            [first, last] => Some((first, last)),
            _ => None,
        })
    }

    /// Whether the log has reached its size, so that its oldest entries are taken away.
    async fn log_is_cut(&self) -> Result<bool> {
        let local = self.database().await?.client().database("local");
        let size = local.run_command(doc! { "collStats": "oplog.rs" }).await.during("look at the log")?;
        let number = |name: &str| size.get_f64(name).or_else(|_| size.get_i64(name).map(|v| v as f64));
        let number = |name: &str| number(name).or_else(|_| size.get_i32(name).map(f64::from)).unwrap_or(0.0);
        Ok(number("size") > 0.9 * number("maxSize"))
    }
}

#[async_trait]
impl Examiner for MongoStore {
    async fn examine(&self, side: Side) -> Result<Vec<Finding>> {
        let database = self.database().await?;
        let hello = database.run_command(doc! { "hello": 1 }).await.during("examine")?;
        let set = hello.get_str("setName").unwrap_or_default().to_owned();
        let advice = "there are no transactions and no stream of changes: start it with --replSet";
        let found = if set.is_empty() { "none" } else { &set };
        let mut findings = vec![Finding::new("replica set", found, !set.is_empty(), Weight::Loss, advice)];
        let info = database.run_command(doc! { "buildInfo": 1 }).await.during("examine")?;
        let version = info.get_str("version").unwrap_or_default().to_owned();
        findings.push(Finding::new(
            "version",
            version,
            is_new_enough(&hello),
            Weight::Loss,
            "below 6.0 a stream of changes does not say which collection it is about: upgrade the server",
        ));
        let members = hello.get_array("hosts").map_or(1, Vec::len);
        let advice = "the loss of this one machine loses everything: a set has three members";
        findings.push(Finding::new("members", members, members >= 3, Weight::Notice, advice));
        if side == Side::Source {
            findings.push(match self.log().await {
                Ok(Some((first, last))) => {
                    let hours = f64::from(last.time.saturating_sub(first.time)) / 3_600.0;
                    let advice = "when a run stops for longer it cannot go on: raise it with replSetResizeOplog and minRetentionHours";
                    let good = hours >= WINDOW_HOURS;
                    Finding::new("the log reaches back", format!("{hours:.1} h"), good, Weight::Notice, advice)
                }
                _ => {
                    let advice = "grant read on local, to have the log watched";
                    Finding::new("the log reaches back", "not known", false, Weight::Notice, advice)
                }
            });
        }
        Ok(findings)
    }

    async fn strain(&self, _: &FlowName, from: &Position) -> Result<Strain> {
        let Ok(Some((first, last))) = self.log().await else { return Ok(Strain::default()) };
        let had = stream::seconds(from)?;
        let (first, last) = (f64::from(first.time), f64::from(last.time));
        // A young log has not been cut yet: how far it will reach is not known.
        let whole = last - first;
        let used = (whole > 0.0).then(|| ((last - had) / whole).clamp(0.0, 1.0));
        let cut = self.log_is_cut().await.unwrap_or(false);
        // The log is kept for nobody.
        Ok(Strain { held_bytes: 0, used: used.filter(|_| cut) })
    }

    fn grants(&self, side: Side, user: &str) -> String {
        let name = self.name();
        let roles = match side {
            Side::Source => format!(
                "{{ role: \"readWrite\", db: \"{name}\" }}, {{ role: \"read\", db: \"local\" }}, {{ role: \"clusterMonitor\", db: \"admin\" }}"
            ),
            Side::Target => format!("{{ role: \"readWrite\", db: \"{name}\" }}"),
        };
        format!(
            "// In mongosh, as an administrator. An idle source is written one small document of our own.\n\
             use {name}\n\
             db.createUser({{ user: \"{user}\", pwd: passwordPrompt(), roles: [ {roles} ] }})\n"
        )
    }
}
