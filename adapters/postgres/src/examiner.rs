//! What the server's settings mean for a flow, and what a flow's slot costs it.

use async_trait::async_trait;
use tidegate_core::port::{Examiner, Finding, Side, Strain, Weight};
use tidegate_core::{FlowName, Position, Result};

use crate::catalog::capture;
use crate::connect::Session;
use crate::error::from_driver;
use crate::sql;
use crate::store::PostgresStore;

/// A transaction that is open for longer holds up every new capture.
const LONG: &str = "5 minutes";

async fn text(session: &Session, query: &str) -> Result<String> {
    let row = session.query_one(query, &[]).await.map_err(|e| from_driver(e, "examine"))?;
    Ok(row.get::<_, Option<String>>(0).unwrap_or_default())
}

async fn setting(session: &Session, name: &str) -> Result<String> {
    text(session, &format!("SELECT current_setting('{name}', true)")).await
}

async fn of_both(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let version = setting(session, "server_version_num").await?;
    let major = version.parse::<u32>().unwrap_or(0) / 10_000;
    let old = "below 14 there is no binary stream of changes: upgrade the server";
    findings.push(Finding::new(
        "version",
        setting(session, "server_version").await?,
        major >= 14,
        Weight::Loss,
        old,
    ));
    for (name, advice) in [
        ("fsync", "a crash of the machine corrupts the database: set it to on"),
        ("full_page_writes", "a crash of the machine can corrupt pages: set it to on"),
    ] {
        let found = setting(session, name).await?;
        let good = found == "on";
        findings.push(Finding::new(name, found, good, Weight::Loss, advice));
    }
    let standby = text(session, "SELECT pg_is_in_recovery()::text").await? == "true";
    let advice = "a standby takes neither slots nor rows: name the primary";
    findings.push(Finding::new(
        "standby",
        if standby { "yes" } else { "no" },
        !standby,
        Weight::Loss,
        advice,
    ));
    Ok(())
}

async fn of_source(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let level = setting(session, "wal_level").await?;
    let good = level == "logical";
    let advice = "no change can be captured: ALTER SYSTEM SET wal_level = logical, and restart the server";
    findings.push(Finding::new("wal_level", level, good, Weight::Loss, advice));

    for (name, taken) in [
        ("max_replication_slots", "SELECT count(*)::text FROM pg_replication_slots"),
        ("max_wal_senders", "SELECT count(*)::text FROM pg_stat_replication"),
    ] {
        let most: u32 = setting(session, name).await?.parse().unwrap_or(0);
        let taken: u32 = text(session, taken).await?.parse().unwrap_or(0);
        let advice = format!("a migration needs one more: raise {name} and restart the server");
        findings.push(Finding::new(
            name,
            format!("{taken} of {most} taken"),
            taken < most,
            Weight::Loss,
            advice,
        ));
    }
    let keep = setting(session, "max_slot_wal_keep_size").await?;
    let bounded = keep != "-1";
    let advice = "a slot that nobody reads fills the disk; set a bound that is larger than what changes in the longest \
        stop you can bear";
    let found = if bounded { keep } else { "no bound".to_owned() };
    findings.push(Finding::new("max_slot_wal_keep_size", found, bounded, Weight::Notice, advice));

    let may =
        text(session, "SELECT (rolreplication OR rolsuper)::text FROM pg_roles WHERE rolname = current_user")
            .await?;
    let advice = "the user may not stream changes: ALTER ROLE … REPLICATION";
    findings.push(Finding::new("right to replicate", &may, may == "true", Weight::Loss, advice));

    let idle = text(
        session,
        "SELECT string_agg(slot_name || ' (' || pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) || ')', ', ')
         FROM pg_replication_slots WHERE NOT active",
    )
    .await?;
    let advice = "each keeps log that nobody reads: start its reader again or drop it";
    let found = if idle.is_empty() { "none".to_owned() } else { idle.clone() };
    findings.push(Finding::new("slots without a reader", found, idle.is_empty(), Weight::Notice, advice));

    let open = text(
        session,
        &format!(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE xact_start < now() - interval '{LONG}'
                AND backend_type = 'client backend' AND pid <> pg_backend_pid())
             + (SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '{LONG}') || ''"
        ),
    )
    .await?;
    let advice = "a capture begins when they have ended; see pg_stat_activity and pg_prepared_xacts";
    findings.push(Finding::new(
        format!("transactions open for over {LONG}"),
        &open,
        open == "0",
        Weight::Notice,
        advice,
    ));
    Ok(())
}

async fn of_target(session: &Session, findings: &mut Vec<Finding>) -> Result<()> {
    let commit = setting(session, "synchronous_commit").await?;
    let advice = "a crash of the target loses rows that the source has been told to forget: set it to on";
    findings.push(Finding::new("synchronous_commit", &commit, commit != "off", Weight::Loss, advice));
    Ok(())
}

#[async_trait]
impl Examiner for PostgresStore {
    async fn examine(&self, side: Side) -> Result<Vec<Finding>> {
        let session = self.session().await?;
        let mut findings = Vec::new();
        of_both(&session, &mut findings).await?;
        match side {
            Side::Source => of_source(&session, &mut findings).await?,
            Side::Target => of_target(&session, &mut findings).await?,
        }
        Ok(findings)
    }

    async fn strain(&self, flow: &FlowName, _: &Position) -> Result<Strain> {
        let session = self.session().await?;
        let Some((held_bytes, safe)) = capture::kept(&session, flow).await? else {
            return Ok(Strain::default());
        };
        let used = safe.map(|safe| held_bytes as f64 / (held_bytes as f64 + safe as f64).max(1.0));
        Ok(Strain { held_bytes, used })
    }

    fn grants(&self, side: Side, user: &str) -> String {
        let user = sql::ident(user);
        let database = sql::ident(self.database());
        match side {
            Side::Source => format!(
                "-- Reads all tables of the schema public and streams their changes. A publication can be made by the\n\
                 -- owner of its tables alone: make {user} a member of the role that owns them.\n\
                 CREATE ROLE {user} LOGIN REPLICATION PASSWORD 'change me';\n\
                 GRANT CONNECT, CREATE ON DATABASE {database} TO {user};\n\
                 GRANT USAGE ON SCHEMA public TO {user};\n\
                 GRANT SELECT ON ALL TABLES IN SCHEMA public TO {user};\n\
                 GRANT EXECUTE ON FUNCTION pg_control_system(), pg_control_checkpoint() TO {user};\n\
                 -- GRANT owner_of_the_tables TO {user};\n"
            ),
            Side::Target => format!(
                "-- Makes and writes tables in the schema public, and keeps its state in a schema of its own.\n\
                 CREATE ROLE {user} LOGIN PASSWORD 'change me';\n\
                 GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {user};\n\
                 GRANT USAGE, CREATE ON SCHEMA public TO {user};\n\
                 GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO {user};\n\
                 -- Triggers and foreign keys there, which did their work at the source, shall not act once more. Leave it\n\
                 -- out before PostgreSQL 15, where a superuser alone may keep them from it.\n\
                 GRANT SET ON PARAMETER session_replication_role TO {user};\n"
            ),
        }
    }
}
