//! Starts and ends the keeping of changes: a publication and a slot, both named after the flow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::code;
use tidegate_core::{Error, FlowName, Position, Result, Table};

use crate::connect::Session;
use crate::error::from_driver;
use crate::lsn::Lsn;
use crate::sql;

use super::seal;

/// The name of a flow's slot, and of its publication.
pub(crate) fn name(flow: &FlowName) -> String {
    format!("tidegate_{flow}")
}

const SLOT: &str = "SELECT confirmed_flush_lsn::text, plugin::text, database = current_database()
    FROM pg_replication_slots WHERE slot_name = $1";

/// Keeps changes of these tables from the position that it returns on.
pub(crate) async fn capture(session: &Session, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
    if let Some(table) = tables.iter().find(|table| table.key.is_empty()) {
        return Err(Error::new(code::KEY_MISSING, "a table without a key is not published")
            .with("table", &table.name)
            .hint("its updates and deletes would be refused by the server"));
    }
    let name = name(flow);
    let adds = publish(session, &name, tables).await?;
    let failed = |e| from_driver(e, "create slot");
    let slot = session.query_opt(SLOT, &[&name]).await.map_err(failed)?;
    let position: Option<String> = match slot {
        Some(slot) if slot.get::<_, Option<&str>>(1) != Some("pgoutput") || !slot.get::<_, bool>(2) => {
            return Err(Error::new(code::SLOT_UNAVAILABLE, "a slot of this name belongs to somebody else")
                .with("slot", name)
                .hint("give the migration another name"));
        }
        Some(slot) => {
            if adds {
                // What a transaction that goes on did to a table before it was published is not sent: readers have
                // to see it.
                wait_until_seen(session).await?;
                let sql = format!("COMMENT ON PUBLICATION {} IS NULL", sql::ident(&name));
                session.batch_execute(&sql).await.map_err(|e| from_driver(e, "publish"))?;
            }
            slot.get(0)
        }
        None => {
            let sql = "SELECT lsn::text FROM pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
            let row = session.query_one(sql, &[&name]).await.map_err(failed)?;
            wait_until_seen(session).await?;
            row.get(0)
        }
    };
    let position = position
        .ok_or_else(|| Error::new(code::SLOT_LOST, "the slot has no position").with("slot", &name))?;
    Ok(Position::from_u64(position.parse::<Lsn>()?.0))
}

/// Waits until everything that may have committed before now is seen by readers.
async fn wait_until_seen(session: &Session) -> Result<()> {
    let failed = |e| from_driver(e, "create slot");
    let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text";
    let bound: String = session.query_one(sql, &[]).await.map_err(failed)?.get(0);
    let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";
    while !session.query_one(sql, &[&bound]).await.map_err(failed)?.get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// What a publication says of itself from the moment it gets a table until readers see what was not sent of it: this
/// session may not live to see that.
const GROWS: &str = "tidegate waits for the transactions that went on when a table was added";

/// Publishes exactly these tables. Returns whether one of them was not published before.
async fn publish(session: &Session, name: &str, tables: &[Arc<Table>]) -> Result<bool> {
    let failed = |e| from_driver(e, "publish");
    let sql = "SELECT coalesce(obj_description(p.oid, 'pg_publication') = $2, false) FROM pg_publication p
        WHERE p.pubname = $1";
    let known = session.query_opt(sql, &[&name, &GROWS]).await.map_err(failed)?;
    // ONLY, so that children by inheritance are not published behind the plan's back.
    let list: Vec<String> = tables.iter().map(|table| format!("ONLY {}", sql::table(&table.name))).collect();
    let list = list.join(", ");
    let mut adds = true;
    let statement = if let Some(known) = known {
        let grows: bool = known.get(0);
        let sql = "SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
            WHERE p.pubname = $1";
        let rows = session.query(sql, &[&name]).await.map_err(failed)?;
        let published: BTreeSet<u32> = rows.iter().map(|row| row.get(0)).collect();
        let mut wanted = BTreeSet::new();
        for table in tables {
            let sql = "SELECT to_regclass($1)::oid";
            let row = session.query_one(sql, &[&sql::table(&table.name)]).await.map_err(failed)?;
            wanted.extend(row.get::<_, Option<u32>>(0));
        }
        if wanted == published && wanted.len() == tables.len() {
            return Ok(grows);
        }
        adds = grows || !wanted.is_subset(&published);
        let name = sql::ident(name);
        let note = if adds {
            format!("; COMMENT ON PUBLICATION {name} IS {}", sql::literal(GROWS))
        } else {
            String::new()
        };
        // Both in one transaction.
        format!("ALTER PUBLICATION {name} SET TABLE {list}{note}")
    } else {
        format!(
            "CREATE PUBLICATION {} FOR TABLE {list} WITH (publish_via_partition_root = true)",
            sql::ident(name)
        )
    };
    if tables.is_empty() {
        return Ok(false);
    }
    let published = session.batch_execute(&statement).await;
    published.map_err(|e| from_driver(e, "publish").with("publication", name))?;
    Ok(adds)
}

/// Removes what [`capture`] made.
pub(crate) async fn clean(session: &Session, flow: &FlowName) -> Result<()> {
    let failed = |e| from_driver(e, "clean");
    let name = name(flow);
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE slot_name = $1 AND database = current_database()";
    session.query(sql, &[&name]).await.map_err(failed)?;
    session
        .batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", sql::ident(&name)))
        .await
        .map_err(failed)?;
    seal::remove(session, flow).await
}
