//! A flow's seal at its source: the comment of a publication without tables. Who may publish may write it, a file
//! system's copy has it, and nobody reads it by accident.

use tidegate_core::{FlowName, Result};

use crate::connect::Session;
use crate::error::from_driver;
use crate::sql::{ident, literal};

/// The name of a seal's publication: no flow's publication has a hyphen.
fn name(flow: &FlowName) -> String {
    format!("{}-seal", super::capture::name(flow))
}

pub(super) async fn sealed(session: &Session, flow: &FlowName) -> Result<Option<String>> {
    let sql = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = $1";
    let row = session.query_opt(sql, &[&name(flow)]).await.map_err(|e| from_driver(e, "read the seal"))?;
    Ok(row.and_then(|row| row.get(0)))
}

pub(super) async fn seal(
    session: &Session,
    flow: &FlowName,
    was: Option<&str>,
    wanted: &str,
) -> Result<bool> {
    let publication = name(flow);
    let (named, quoted) = (literal(&publication), ident(&publication));
    let captured = literal(&super::capture::name(flow));
    let (was, seal) = (was.map_or_else(|| "NULL".to_owned(), literal), literal(wanted));
    // The lock makes a comparison and a write of the two statements: a comment has no condition. Whatever the role's
    // commits are otherwise, this one is durable here when it is answered, and waits for no standby.
    // Not before the flow has its slot: one that is sealed and has none has lost it.
    let body = format!(
        "BEGIN
             SET LOCAL synchronous_commit = local;
             PERFORM pg_advisory_xact_lock(hashtextextended({named}, 0));
             IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {captured}) OR NOT EXISTS (SELECT
                     FROM pg_replication_slots WHERE slot_name = {captured} AND confirmed_flush_lsn IS NOT NULL)
             THEN
                 RETURN;
             END IF;
             IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {named}) THEN
                 CREATE PUBLICATION {quoted};
             END IF;
             IF (SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = {named})
                 IS NOT DISTINCT FROM {was}
             THEN
                 COMMENT ON PUBLICATION {quoted} IS {seal};
             END IF;
         END"
    );
    session.batch_execute(&format!("DO {}", literal(&body))).await.map_err(|e| from_driver(e, "seal"))?;
    // A block has no answer.
    Ok(sealed(session, flow).await?.as_deref() == Some(wanted))
}

/// Removes the seal.
pub(super) async fn remove(session: &Session, flow: &FlowName) -> Result<()> {
    let sql = format!("DROP PUBLICATION IF EXISTS {}", ident(&name(flow)));
    session.batch_execute(&sql).await.map_err(|e| from_driver(e, "clean"))
}
