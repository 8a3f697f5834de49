//! Tells a source from an older copy of itself, and its target from another one.
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
//!
//! A seal also says whose it is, by a word that stays the same. What a source keeps for a flow is for one target: another
//! one, or one that was emptied since, has no record of it and is refused before it changes anything.

use std::convert::Infallible;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Catalog, StateStore};
use tidegate_core::{Clock, Error, FlowName, Ids, Result, SystemIds};

use crate::engine::Flow;
use crate::run::read;

/// How often the seal is changed. A copy that is younger than that is not told from the source.
const EVERY: Duration = Duration::from_secs(5);

/// How often is looked whether a seal is changed, once a second: for longer than it stays the same while somebody runs the
/// flow.
const LOOKS: u32 = 8;

/// The record of the seal in the target.
const SEAL: &str = "seal";

/// The seal that the source has, and the one that it is about to get.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Agreed {
    at: Option<String>,
    next: Option<String>,
}

impl Agreed {
    fn is_known(&self, found: Option<&str>) -> bool {
        found == self.at.as_deref() || (found.is_some() && found == self.next.as_deref())
    }

    /// Whether a seal that the source has is another target's.
    fn is_anothers(&self, found: Option<&str>) -> bool {
        let own = self.at.as_deref().or(self.next.as_deref());
        found.is_some_and(|found| !self.is_known(Some(found)) && own.map(owner) != Some(owner(found)))
    }
}

/// Changes the seal from time to time, until the source is another one.
///
/// # Errors
/// `source-replaced`, `name-taken`.
pub(crate) async fn keep(flow: &Flow, target: &dyn StateStore) -> Result<Infallible> {
    loop {
        flow.clock.sleep(EVERY).await;
        match renew(flow, target).await {
            Err(error) if [code::SOURCE_REPLACED, code::NAME_TAKEN].contains(&error.code()) => {
                return Err(error);
            }
            // The run itself finds out whether both sides are there, and what to do then.
            Err(error) => tracing::debug!(%error, "the seal could not be changed"),
            Ok(_) => {}
        }
    }
}

/// Finds that the source is the one that the flow has read from so far and that it is this target's, and changes the seal.
/// Whether it is sealed now: not where nothing may be written, and not before it is captured.
///
/// The record is one of the target, wherever the flow's others are: only a target that is the same one has it.
///
/// # Errors
/// As [`check`].
pub async fn renew(flow: &Flow, target: &dyn StateStore) -> Result<bool> {
    let source = flow.source.catalog().await?;
    let Some(Looked { agreed, version, found }) = look(&flow.name, source.as_ref(), target).await? else {
        return Ok(false);
    };
    // The same one again while the source does not have it: a write that was given up may still arrive.
    let again = agreed.next.filter(|_| found == agreed.at);
    let is_new = again.is_none();
    let next = again.unwrap_or_else(|| after(found.as_deref()));
    let announced = Agreed { at: found.clone(), next: Some(next.clone()) };
    let Some(version) = write(flow, target, &announced, version).await? else { return Ok(false) };
    let sealed = match source.seal(&flow.name, found.as_deref(), &next).await {
        Err(error) if error.verdict() == Verdict::Never => {
            // Once: it is tried again all the time.
            if is_new {
                tracing::warn!(%error, "the source cannot be sealed: an older copy of it would not be told from it, nor another target from this one");
            }
            return Ok(false);
        }
        sealed => sealed?,
    };
    if sealed {
        write(flow, target, &Agreed { at: Some(next), next: None }, version).await?;
    } else {
        // Another target may have been faster.
        check(&flow.name, source.as_ref(), target).await?;
    }
    Ok(sealed)
}

/// Finds that the source is the one that the flow has read from so far, if any, and that it is this target's.
///
/// A source where nothing may be written has no seal; then its positions have to do.
///
/// # Errors
/// `name-taken`, `source-replaced`; as both stores', if it could not be found out.
pub async fn check(flow: &FlowName, source: &dyn Catalog, target: &dyn StateStore) -> Result<()> {
    look(flow, source, target).await.map(drop)
}

/// Whether somebody runs a flow, as far as its source tells: its seal is changed meanwhile.
///
/// # Errors
/// As the source's.
pub async fn is_kept(flow: &FlowName, source: &dyn Catalog, clock: &dyn Clock) -> Result<bool> {
    let found = source.sealed(flow).await?;
    for _ in 0..LOOKS {
        if found.is_none() {
            break;
        }
        clock.sleep(Duration::from_secs(1)).await;
        if source.sealed(flow).await? != found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What both sides say.
struct Looked {
    agreed: Agreed,
    version: u64,
    found: Option<String>,
}

/// Looks at both sides; nothing if the source's seal may not be read and never was.
async fn look(flow: &FlowName, source: &dyn Catalog, target: &dyn StateStore) -> Result<Option<Looked>> {
    let (agreed, version) = read::<Agreed>(target, flow, SEAL).await?;
    let found = match source.sealed(flow).await {
        Err(error) if error.code() == code::ACCESS_DENIED && agreed.at.is_none() => {
            tracing::debug!(%error, "the seal cannot be read");
            return Ok(None);
        }
        found => found?,
    };
    if agreed.is_anothers(found.as_deref()) {
        return Err(Error::new(
            code::NAME_TAKEN,
            format!("what the source keeps for migration {flow} is for another target"),
        )
        .hint(format!(
            "give this one a --name of its own; if the other target is gone for good: tidegate migrate abort --source-only --name {flow}"
        )));
    }
    // Seals grow. A source that is ahead is one whose target is an older copy: it is told what it missed, if the source
    // still has it.
    if !agreed.is_known(found.as_deref()) && found < agreed.at {
        return Err(Error::new(
            code::SOURCE_REPLACED,
            "the source does not have the seal that the target knows: it is an older copy, or another database",
        ));
    }
    Ok(Some(Looked { agreed, version, found }))
}

/// A seal that nobody can guess, and that comes after this one whatever the clocks of two runners are:
/// `number-owner-word`. It has this one's owner.
fn after(seal: Option<&str>) -> String {
    let number = seal.and_then(|seal| u64::from_str_radix(seal.split_once('-')?.0, 16).ok());
    let number = number.map_or(1, |number| number.saturating_add(1));
    let word = || SystemIds.next().simple().to_string();
    let owner = seal.and_then(owner).map_or_else(word, str::to_owned);
    format!("{number:016x}-{owner}-{}", word())
}

/// Whose a seal is.
fn owner(seal: &str) -> Option<&str> {
    let mut parts = seal.split('-');
    parts.nth(1).filter(|_| parts.next().is_some())
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
            assert!(owner(&one).is_some() && owner(&one) == owner(&seal));
            seal = one;
        }
        assert!(after(Some("what another program wrote")).as_str() > "0");
        assert_ne!(owner(&after(None)), owner(&after(None)));
    }

    #[test]
    fn a_seal_is_anothers_unless_the_record_knows_its_owner() {
        let agreed = |at: Option<&str>, next: Option<&str>| Agreed {
            at: at.map(str::to_owned),
            next: next.map(str::to_owned),
        };
        for (agreed, found, is_anothers) in [
            (agreed(None, None), None, false),
            (agreed(None, None), Some("1-a-x"), true),
            (agreed(None, None), Some("1-x"), true),
            (agreed(None, Some("1-a-x")), Some("1-a-x"), false),
            (agreed(None, Some("1-a-x")), Some("1-b-x"), true),
            (agreed(Some("5-a-x"), None), Some("9-a-y"), false),
            (agreed(Some("5-a-x"), None), Some("9-b-y"), true),
            (agreed(Some("5-a-x"), None), Some("2-b-y"), true),
            (agreed(Some("5-a-x"), None), None, false),
        ] {
            assert_eq!(agreed.is_anothers(found), is_anothers, "{agreed:?} {found:?}");
        }
    }
}
