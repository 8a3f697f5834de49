//! Tells a source from an older copy of itself.
//!
//! A copy that was put in the source's place, and written to since, can have got further than the flow: its positions
//! do not tell. So both sides share a word that nobody can guess, the seal, and change it all the time. A copy has the
//! seal of the time when it was made.
//!
//! ```text
//!   target's record   at: a             at: a, next: b            at: b
//!   source            a                 a            b            b
//!                            ── record ─▶  ── seal ─▶  ── record ─▶
//! ```
//!
//! After a crash anywhere the source has `at` or `next`. Anything else is another history.

use std::convert::Infallible;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::StateStore;
use tidegate_core::{Error, Ids, Result, SystemIds};

use crate::engine::Flow;
use crate::run::read;

/// How often the seal is changed. A copy that is younger than that is not told from the source.
const EVERY: Duration = Duration::from_secs(5);

/// The record of the seal in the target.
const SEAL: &str = "seal";

/// The seal that the source has, and the one that it is about to get.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Agreed {
    at: Option<String>,
    next: Option<String>,
}

/// Changes the seal from time to time, until the source is another one.
///
/// # Errors
/// `source-replaced`.
pub(crate) async fn keep(flow: &Flow, state: &dyn StateStore) -> Result<Infallible> {
    loop {
        flow.clock.sleep(EVERY).await;
        match renew(flow, state).await {
            Err(error) if error.code() == code::SOURCE_REPLACED => return Err(error),
            // The run itself finds out whether both sides are there, and what to do then.
            Err(error) => tracing::debug!(%error, "the seal could not be changed"),
            Ok(()) => {}
        }
    }
}

/// Finds that the source is the one that the flow has read from so far, and changes the seal.
///
/// A source where nothing may be written has no seal; then its positions have to do.
///
/// # Errors
/// `source-replaced`; as both stores', if it could not be found out.
pub async fn renew(flow: &Flow, state: &dyn StateStore) -> Result<()> {
    let source = flow.source.catalog().await?;
    let (agreed, version) = read::<Agreed>(state, &flow.name, SEAL).await?;
    let found = match source.sealed(&flow.name).await {
        Err(error) if error.code() == code::ACCESS_DENIED && agreed.at.is_none() => {
            tracing::debug!(%error, "the seal cannot be read");
            return Ok(());
        }
        found => found?,
    };
    let is_known = found == agreed.at || (found.is_some() && found == agreed.next);
    // Seals grow. A source that is ahead is one whose target is an older copy: it is told what it missed, if the source
    // still has it.
    if !is_known && found < agreed.at {
        return Err(Error::new(
            code::SOURCE_REPLACED,
            "the source does not have the seal that the target knows: it is an older copy, or another database",
        ));
    }
    // The same one again while the source does not have it: a write that was given up may still arrive.
    let again = agreed.next.filter(|_| found == agreed.at);
    let is_new = again.is_none();
    let next = again.unwrap_or_else(|| after(found.as_deref()));
    let announced = Agreed { at: found.clone(), next: Some(next.clone()) };
    let Some(version) = write(flow, state, &announced, version).await? else { return Ok(()) };
    let sealed = match source.seal(&flow.name, found.as_deref(), &next).await {
        Err(error) if error.verdict() == Verdict::Never => {
            // Once: it is tried again all the time.
            if is_new {
                tracing::warn!(%error, "the source cannot be sealed: an older copy of it would not be told from it");
            }
            return Ok(());
        }
        sealed => sealed?,
    };
    if sealed {
        write(flow, state, &Agreed { at: Some(next), next: None }, version).await?;
    }
    Ok(())
}

/// A seal that nobody can guess, and that comes after this one whatever the clocks of two runners are.
fn after(seal: Option<&str>) -> String {
    let number = seal.and_then(|seal| u64::from_str_radix(seal.split_once('-')?.0, 16).ok());
    format!("{:016x}-{}", number.map_or(1, |number| number.saturating_add(1)), SystemIds.next().simple())
}

/// The new version of the record; `None` if another runner wrote it meanwhile.
async fn write(flow: &Flow, state: &dyn StateStore, agreed: &Agreed, version: u64) -> Result<Option<u64>> {
    let text = serde_json::to_string(agreed)
        .map_err(|e| Error::new(code::INTERNAL, "a record cannot be written").because(e))?;
    state.put(&flow.name, SEAL, &text, version).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_grow_and_differ() {
        let mut seal = after(None);
        for _ in 0..20 {
            let (one, two) = (after(Some(&seal)), after(Some(&seal)));
            assert!(one > seal && two > seal && one != two);
            seal = one;
        }
        assert!(after(Some("what another program wrote")).as_str() > "0");
    }
}
