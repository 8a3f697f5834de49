//! Starts and ends the keeping of changes: a publication and a slot, both named after the flow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::error::{Verdict, code};
use tidegate_core::{Error, FlowName, Position, Result, Table, TableName};
use tokio_postgres::error::SqlState;

use crate::connect::Session;
use crate::error::from_driver;
use crate::lsn::Lsn;
use crate::sql;

use super::{identity, seal};

/// The name of a flow's slot, and of its publication.
pub(crate) fn name(flow: &FlowName) -> String {
    format!("tidegate_{flow}")
}

const SLOT: &str = "SELECT confirmed_flush_lsn::text, plugin::text, database = current_database(), active
    FROM pg_replication_slots WHERE slot_name = $1";

/// A wait for transactions that is longer is said.
const SILENCE: Duration = Duration::from_secs(2);

/// Keeps changes of these tables from the position that it returns on.
pub(crate) async fn capture(session: &Session, flow: &FlowName, tables: &[Arc<Table>]) -> Result<Position> {
    if let Some(table) = tables.iter().find(|table| table.key.is_empty()) {
        return Err(Error::new(code::KEY_MISSING, "a table without a key is not published")
            .with("table", &table.name)
            .hint("its updates and deletes would be refused by the server"));
    }
    let name = name(flow);
    let failed = |e| from_driver(e, "create slot");
    let slot = session.query_opt(SLOT, &[&name]).await.map_err(failed)?;
    let (source, known) = (identity(session).await?.0, known(session, &name).await?);
    refuse_if_gone(session, flow, slot.is_some(), known.as_ref(), &source).await?;
    let mut note = publish(session, &name, tables, known, source).await?;
    let mut is_said = false;
    let position: Option<String> = match slot {
        Some(slot) if slot.get::<_, Option<&str>>(1) != Some("pgoutput") || !slot.get::<_, bool>(2) => {
            return Err(Error::new(code::SLOT_UNAVAILABLE, "a slot of this name belongs to somebody else")
                .with("slot", name)
                .hint("give the migration another name"));
        }
        Some(slot) if slot.get::<_, Option<&str>>(0).is_none() && slot.get(3) => {
            // By another runner, or for one that was killed: the server goes on with it.
            let what = "the slot is being made, and waits for the transactions that were open then";
            return Err(Error::new(code::SLOT_UNAVAILABLE, what)
                .verdict_is(Verdict::Retry)
                .with("slot", name)
                .hint("end transactions that stay open for long"));
        }
        Some(slot) => slot.get(0),
        None => {
            let sql = "SELECT lsn::text FROM pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
            let making = async { session.query_one(sql, &[&name]).await.map_err(failed) };
            let row = said(session, &mut is_said, making).await?;
            note.waits = true;
            row.get(0)
        }
    };
    if note.waits {
        // What a transaction that goes on did before is not sent: readers have to see it.
        said(session, &mut is_said, wait_until_seen(session)).await?;
        note.waits = false;
        if !tables.is_empty() {
            session.batch_execute(&note.comment(&name)).await.map_err(|e| from_driver(e, "publish"))?;
        }
    }
    let position = position
        .ok_or_else(|| Error::new(code::SLOT_LOST, "the slot has no position").with("slot", &name))?;
    Ok(Position::from_u64(position.parse::<Lsn>()?.0))
}

/// A flow is sealed when it has its slot. What is made anew would hide that changes went by unseen, and would stay.
///
/// # Errors
/// `slot-lost` if the slot or the publication of a flow that is sealed is gone.
async fn refuse_if_gone(
    session: &Session,
    flow: &FlowName,
    has_slot: bool,
    known: Option<&Note>,
    source: &str,
) -> Result<()> {
    if seal::sealed(session, flow).await?.is_none() {
        return Ok(());
    }
    let lost = |what| Err(Error::new(code::SLOT_LOST, what).with("slot", name(flow)));
    match known {
        None => lost("the publication of the slot is gone"),
        // A copy of the database has the publication and not the slot: that it is a copy is found by its identity.
        Some(note) if !has_slot && note.source == source => lost("the replication slot is gone"),
        Some(_) => Ok(()),
    }
}

/// The bytes of log that the server keeps for a flow, and those that may still be written before it takes them away, if
/// there is a bound; nothing for a flow that has no slot.
///
/// # Errors
/// `slot-lost` if it has taken them away, or the slot of the flow is gone.
pub(crate) async fn kept(session: &Session, flow: &FlowName) -> Result<Option<(u64, Option<u64>)>> {
    let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint, safe_wal_size,
        wal_status IS NOT DISTINCT FROM 'lost' FROM pg_replication_slots WHERE slot_name = $1";
    let name = name(flow);
    let row = session.query_opt(sql, &[&name]).await.map_err(|e| from_driver(e, "look at the slot"))?;
    let Some(row) = row else {
        let (source, known) = (identity(session).await?.0, known(session, &name).await?);
        refuse_if_gone(session, flow, false, known.as_ref(), &source).await?;
        return Ok(None);
    };
    if row.get(2) {
        return Err(
            Error::new(code::SLOT_LOST, "the server has taken the log of the slot away").with("slot", name)
        );
    }
    let bytes = |at: usize| row.get::<_, Option<i64>>(at).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    Ok(Some((bytes(0).unwrap_or(0), bytes(1))))
}

/// Waits for transactions that are open at the source, and says for whom if that takes long and nobody was told yet.
async fn said<T>(
    session: &Session,
    is_said: &mut bool,
    waiting: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Before, since the session may be what waits.
    let (holder, age_seconds) = oldest(session).await?.unwrap_or_default();
    let mut waiting = std::pin::pin!(waiting);
    if let Ok(done) = tokio::time::timeout(SILENCE, &mut waiting).await {
        return done;
    }
    if !std::mem::replace(is_said, true) {
        tracing::warn!(
            holder,
            age_seconds,
            "waiting for the transactions that were open at the source when the capture began, nothing is lost; \
            see pg_stat_activity and pg_prepared_xacts for those that stay open, and end them"
        );
    }
    waiting.await
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

/// Who has had a transaction open for longest, and for how many seconds.
async fn oldest(session: &Session) -> Result<Option<(String, i64)>> {
    let sql = "SELECT holder, extract(epoch FROM now() - since)::bigint FROM (
            SELECT 'pid ' || pid AS holder, xact_start AS since FROM pg_stat_activity
                WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
            UNION ALL SELECT 'prepared transaction ' || gid, prepared FROM pg_prepared_xacts
        ) open ORDER BY since LIMIT 1";
    let row = session.query_opt(sql, &[]).await.map_err(|e| from_driver(e, "look at transactions"))?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// What a publication says of itself, in its comment.
#[derive(Debug, Default, PartialEq, Eq)]
struct Note {
    /// The numbers of the tables that were put into it by us, and of their entries in it: one that is gone was taken out by
    /// somebody else, and one with another entry was put back.
    tables: BTreeMap<u32, u32>,
    /// The database that it was made in.
    source: String,
    /// From the moment it gets a table until readers see what was not sent of it: this session may not live to see that.
    waits: bool,
}

impl Note {
    const PUBLISHES: &'static str = "tidegate publishes ";
    const OF: &'static str = " of ";
    const WAITS: &'static str = " and waits for the transactions that went on when a table was added";

    /// Reads a comment; nothing of one that is not ours.
    fn parse(comment: &str) -> Self {
        let Some(list) = comment.strip_prefix(Self::PUBLISHES) else { return Self::default() };
        let (list, waits) = list.strip_suffix(Self::WAITS).map_or((list, false), |list| (list, true));
        let Some((list, source)) = list.split_once(Self::OF) else { return Self::default() };
        let entry = |text: &str| {
            let (table, entry) = text.split_once(':')?;
            Some((table.parse().ok()?, entry.parse().ok()?))
        };
        let tables = list.split(',').filter_map(entry).collect();
        Self { tables, source: source.to_owned(), waits }
    }

    /// The statement that writes it.
    fn comment(&self, publication: &str) -> String {
        let list: Vec<String> = self.tables.iter().map(|(table, entry)| format!("{table}:{entry}")).collect();
        let text = format!("{}{}{}", Self::PUBLISHES, list.join(","), self.end());
        format!("COMMENT ON PUBLICATION {} IS {}", sql::ident(publication), sql::literal(&text))
    }

    /// A statement that writes it with the tables that the publication has then.
    fn comment_as_it_is(&self, publication: &str) -> String {
        let list = format!(
            "SELECT string_agg(r.prrelid || ':' || r.oid, ',' ORDER BY r.prrelid)
             FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = {}",
            sql::literal(publication)
        );
        let body = format!(
            "BEGIN EXECUTE {} || quote_literal({} || ({list}) || {}); END",
            sql::literal(&format!("COMMENT ON PUBLICATION {} IS ", sql::ident(publication))),
            sql::literal(Self::PUBLISHES),
            sql::literal(&self.end())
        );
        format!("DO {}", sql::literal(&body))
    }

    /// What stands behind the list of tables.
    fn end(&self) -> String {
        format!("{}{}{}", Self::OF, self.source, if self.waits { Self::WAITS } else { "" })
    }
}

/// What a publication that is there says of itself.
async fn known(session: &Session, name: &str) -> Result<Option<Note>> {
    let sql =
        "SELECT coalesce(obj_description(oid, 'pg_publication'), '') FROM pg_publication WHERE pubname = $1";
    let row = session.query_opt(sql, &[&name]).await.map_err(|e| from_driver(e, "publish"))?;
    Ok(row.map(|row| Note::parse(row.get(0))))
}

/// Publishes exactly these tables. Returns what the publication says of itself then.
///
/// # Errors
/// `slot-lost` if a table that was published is not any more.
async fn publish(
    session: &Session,
    name: &str,
    tables: &[Arc<Table>],
    known: Option<Note>,
    source: String,
) -> Result<Note> {
    let failed = |e| from_driver(e, "publish");
    if tables.is_empty() {
        return Ok(Note::default());
    }
    let mut wanted = BTreeMap::new();
    for table in tables {
        let sql = "SELECT to_regclass($1)::oid";
        let row = session.query_one(sql, &[&sql::table(&table.name)]).await.map_err(failed)?;
        wanted.extend(row.get::<_, Option<u32>>(0).map(|number| (number, table)));
    }
    // ONLY, so that children by inheritance are not published behind the plan's back.
    let list: Vec<String> = tables.iter().map(|table| format!("ONLY {}", sql::table(&table.name))).collect();
    let list = list.join(", ");
    let published = published(session, name).await?;
    let entry = |number: &u32| (*number, published.get(number).copied().unwrap_or(0));
    let mut note = Note { tables: wanted.keys().map(entry).collect(), source, waits: true };
    let statement = if let Some(was) = known {
        // Publishing it as it was would hide that changes went by unseen.
        let ours = wanted.iter().filter(|(number, _)| was.tables.contains_key(number));
        check(session, name, ours.map(|(number, table)| (*number, &table.name))).await?;
        note.waits = was.waits || !note.tables.keys().all(|number| published.contains_key(number));
        if note == was && note.tables == published && note.tables.len() == tables.len() {
            return Ok(note);
        }
        format!("ALTER PUBLICATION {} SET TABLE {list}", sql::ident(name))
    } else {
        let name = sql::ident(name);
        format!("CREATE PUBLICATION {name} FOR TABLE {list} WITH (publish_via_partition_root = true)")
    };
    // Both in one transaction: nobody else's change comes between them.
    let published = session.batch_execute(&format!("{statement}; {}", note.comment_as_it_is(name))).await;
    published.map_err(|e| {
        // It was not there a moment ago: another runner made it.
        let is_made =
            [SqlState::DUPLICATE_OBJECT, SqlState::UNIQUE_VIOLATION].iter().any(|s| e.code() == Some(s));
        let error = from_driver(e, "publish").with("publication", name);
        if is_made { error.verdict_is(Verdict::Retry) } else { error }
    })?;
    let made = self::known(session, name).await?.unwrap_or_default();
    Ok(Note { tables: made.tables, ..note })
}

/// The tables of a publication, and their entries in it.
async fn published(session: &Session, name: &str) -> Result<BTreeMap<u32, u32>> {
    let sql = "SELECT r.prrelid, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = $1";
    let rows = session.query(sql, &[&name]).await.map_err(|e| from_driver(e, "publish"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Finds that a publication publishes every change of these tables, which it did when they were captured.
///
/// # Errors
/// `slot-lost` if it does not: it was changed by somebody else, and changes may have gone by unseen.
pub(crate) async fn check<'a>(
    session: &Session,
    name: &str,
    tables: impl Iterator<Item = (u32, &'a TableName)>,
) -> Result<()> {
    let failed = |e| from_driver(e, "look at the publication");
    let lost = |what| Err(Error::new(code::SLOT_LOST, what).with("publication", name));
    let sql = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot,
            coalesce(obj_description(oid, 'pg_publication'), '') FROM pg_publication WHERE pubname = $1";
    let Some(row) = session.query_opt(sql, &[&name]).await.map_err(failed)? else {
        return lost("the publication of the slot is gone");
    };
    if !row.get::<_, bool>(0) {
        return lost(
            "the publication of the slot was changed: it does not publish everything, and nobody knows since when",
        );
    }
    let note = Note::parse(row.get(1));
    let (numbers, names): (Vec<u32>, Vec<&TableName>) = tables.unzip();
    let entries: Vec<u32> =
        numbers.iter().map(|number| note.tables.get(number).copied().unwrap_or(0)).collect();
    // By way of JSON, since PostgreSQL 14 has neither of the two columns. What happened to a table that is gone is
    // told elsewhere.
    let sql = "SELECT t.at, r.oid IS DISTINCT FROM t.entry
        FROM unnest($2::oid[], $3::oid[]) WITH ORDINALITY t (number, entry, at)
        JOIN pg_class c ON c.oid = t.number
        LEFT JOIN (pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $1)
            ON r.prrelid = t.number
        WHERE r.oid IS DISTINCT FROM t.entry OR num_nonnulls(to_jsonb(r) ->> 'prqual', to_jsonb(r) ->> 'prattrs') > 0 LIMIT 1";
    let Some(row) = session.query_opt(sql, &[&name, &numbers, &entries]).await.map_err(failed)? else {
        return Ok(());
    };
    let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default();
    let what = if row.get(1) {
        "a table was taken out of the publication, and nobody knows since when"
    } else {
        "the publication of the slot was changed: it leaves out rows or columns of a table, and nobody knows since when"
    };
    lost(what).map_err(|error| error.with("table", names[at]))
}

/// Removes what [`capture`] made: nothing while somebody reads the slot.
pub(crate) async fn clean(session: &Session, flow: &FlowName) -> Result<()> {
    let failed = |e| from_driver(e, "clean");
    let name = name(flow);
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
        WHERE slot_name = $1 AND database = current_database()";
    if let Err(error) = session.query(sql, &[&name]).await.map_err(failed) {
        if error.code() == code::SLOT_UNAVAILABLE {
            return Err(Error::new(code::LEASE_HELD, "somebody reads the slot")
                .with("slot", name)
                .hint(
                    "stop the runner first; the server notices that one was killed within wal_sender_timeout",
                )
                .because(error));
        }
        return Err(error);
    }
    session
        .batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", sql::ident(&name)))
        .await
        .map_err(failed)?;
    seal::remove(session, flow).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_publication_says_of_itself_is_read_back() {
        for waits in [false, true] {
            let source = "postgres:7570/1/16384".to_owned();
            let note = Note { tables: [(7, 9), (16_384, 16_390)].into(), source, waits };
            let statement = note.comment("p");
            let comment = statement.strip_prefix("COMMENT ON PUBLICATION \"p\" IS '").unwrap();
            assert_eq!(Note::parse(comment.strip_suffix('\'').unwrap()), note);
        }
        assert_eq!(Note::parse("a person's own words"), Note::default());
    }
}
