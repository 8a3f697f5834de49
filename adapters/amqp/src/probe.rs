//! What of a server is unsafe, as far as a client can see.

use serde_json::Value as Json;
use tidegate_core::Result;
use tidegate_core::port::Effective;

use crate::artemis::{Management, Question};
use tidegate_core::queue::Access;

pub(crate) async fn probe(access: &Access, management: &Management) -> Result<Effective> {
    let asked = ["getVersion", "isPersistenceEnabled", "isJournalSyncNonTransactional", "isClustered"];
    let found = management.tell(&asked.map(Question::server), "look at the server").await?;
    let is = |place: usize| found.get(place).and_then(Json::as_bool);
    let version = found.first().and_then(Json::as_str).unwrap_or("unknown");
    let mut warnings: Vec<String> = access.warning().into_iter().collect();
    if is(1) != Some(true) {
        warnings.push("the server keeps nothing on its disk: what is stored is lost when it ends".to_owned());
    }
    if is(2) != Some(true) {
        warnings.push(
            "the server does not wait for its disk (journal-sync-non-transactional): what came last is lost when the power goes"
                .to_owned(),
        );
    }
    if is(3) != Some(false) {
        warnings.push(
            "the server is one of a cluster: a channel is on the node that it was made on, and on no other"
                .to_owned(),
        );
    }
    Ok(Effective { version: format!("Artemis {version}"), warnings })
}
