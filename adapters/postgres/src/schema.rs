//! Our own tables in a database, in the schema `tidegate`.

use tidegate_core::error::code;
use tidegate_core::{Error, Result};

use crate::connect::Session;
use crate::error::from_driver;

/// The version of these tables. A newer program reads older ones; an older one refuses.
const VERSION: i32 = 1;

/// `flows` is the checkpoint, `ranges` the ledger of the crawl, `left_out` the tables that take no part, `identities` the
/// tables that rows go to, with what this table itself was then, `holes` the rows that are not there; tables are named and
/// not numbered, since their places in a plan change. A key may be longer than what an index takes. `records`, `leases`, `inbox`
/// and `timers` are services' as well.
const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS tidegate;
    CREATE TABLE IF NOT EXISTS tidegate.format (version int4 NOT NULL);
    CREATE TABLE IF NOT EXISTS tidegate.flows (flow text PRIMARY KEY, source text NOT NULL, position bytea NOT NULL,
        replay bytea NOT NULL, fence int8 NOT NULL);
    CREATE TABLE IF NOT EXISTS tidegate.ranges (flow text, name text, range int8, after_key bytea, upto_key bytea,
        rows int8 NOT NULL, done bool NOT NULL, PRIMARY KEY (flow, name, range));
    CREATE TABLE IF NOT EXISTS tidegate.left_out (flow text, name text, reason text NOT NULL,
        PRIMARY KEY (flow, name));
    CREATE TABLE IF NOT EXISTS tidegate.identities (flow text, name text, oid oid NOT NULL, within oid NOT NULL,
        PRIMARY KEY (flow, name));
    CREATE TABLE IF NOT EXISTS tidegate.holes (flow text NOT NULL, name text NOT NULL, key bytea NOT NULL);
    CREATE UNIQUE INDEX IF NOT EXISTS holes_key ON tidegate.holes (flow, name, sha256(key));
    CREATE TABLE IF NOT EXISTS tidegate.records (flow text, key text, version int8 NOT NULL, value text NOT NULL,
        PRIMARY KEY (flow, key));
    CREATE TABLE IF NOT EXISTS tidegate.leases (flow text PRIMARY KEY, holder text NOT NULL,
        until timestamptz NOT NULL);
    CREATE TABLE IF NOT EXISTS tidegate.inbox (flow text, id text, at int8 NOT NULL, PRIMARY KEY (flow, id));
    CREATE TABLE IF NOT EXISTS tidegate.timers (number int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, flow text NOT NULL,
        id text NOT NULL, at int8 NOT NULL, hidden_until int8 NOT NULL, value text NOT NULL, UNIQUE (flow, id));
    CREATE INDEX IF NOT EXISTS timers_at ON tidegate.timers (flow, at);
    INSERT INTO tidegate.format SELECT 1 WHERE NOT EXISTS (SELECT FROM tidegate.format);";

/// Makes the tables if they are not there.
pub(crate) async fn ensure(session: &Session) -> Result<()> {
    let failed = |e| from_driver(e, "create state");
    // What came to them last: those of an earlier build lack it.
    let sql = "SELECT to_regclass('tidegate.identities') IS NOT NULL AND to_regclass('tidegate.timers') IS NOT NULL";
    if !session.query_one(sql, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        // One at a time: two that create the same schema at once would refuse one of them.
        let sql = format!("BEGIN; SELECT pg_advisory_xact_lock(8389754676233266789); {TABLES} COMMIT");
        if let Err(error) = session.batch_execute(&sql).await {
            let _ = session.batch_execute("ROLLBACK").await;
            return Err(failed(error)
                .hint("the role needs the right to create the schema tidegate: GRANT CREATE ON DATABASE"));
        }
    }
    let sql = "SELECT max(version) FROM tidegate.format";
    let version: Option<i32> = session.query_one(sql, &[]).await.map_err(failed)?.get(0);
    if version.is_some_and(|version| version > VERSION) {
        return Err(Error::new(code::STATE_NEWER, "a newer version of this program wrote the state here"));
    }
    Ok(())
}
