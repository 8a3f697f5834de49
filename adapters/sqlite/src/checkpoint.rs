//! How far flows are, in tables beside the rows: what a target commits together with them.

use sqlx::{Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::port::{Checkpoint, Commit, Exclusion, Identity, KeyRange, Opened, RangeProgress, Route};
use tidegate_core::{Error, FlowName, Key, Position, Result, Row};

use crate::error::During;
use crate::state::NOW;
use crate::statement::sql;

/// Makes the tables.
pub(crate) async fn create(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS tidegate_checkpoint(
             flow TEXT PRIMARY KEY, fence INTEGER NOT NULL, source TEXT NOT NULL,
             position BLOB NOT NULL, replay BLOB NOT NULL);
         CREATE TABLE IF NOT EXISTS tidegate_ranges(
             flow TEXT NOT NULL, tbl TEXT NOT NULL, range INTEGER NOT NULL, after BLOB, upto BLOB,
             rows INTEGER NOT NULL, done INTEGER NOT NULL, PRIMARY KEY (flow, tbl, range));
         CREATE TABLE IF NOT EXISTS tidegate_excluded(
             flow TEXT NOT NULL, tbl TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (flow, tbl));
         CREATE TABLE IF NOT EXISTS tidegate_holes(
             flow TEXT NOT NULL, tbl TEXT NOT NULL, key BLOB NOT NULL, PRIMARY KEY (flow, tbl, key));",
    )
    .execute(connection)
    .await
    .during("create the checkpoint's tables")?;
    Ok(())
}

/// Takes the flow over: from here on nobody who opened it before can commit. To be called in a transaction.
pub(crate) async fn open(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
    first: &Checkpoint,
) -> Result<(i64, Opened)> {
    let known = sqlx::query("SELECT fence, source, position, replay FROM tidegate_checkpoint WHERE flow = ?")
        .bind(flow.as_str())
        .fetch_optional(&mut *connection)
        .await
        .during("read the checkpoint")?;
    let Some(known) = known else {
        // The first fence is the time, so that nobody has it who opened a flow of this name that was forgotten since.
        let store = format!(
            "INSERT INTO tidegate_checkpoint(flow, fence, source, position, replay)
             VALUES (?, {NOW}, ?, ?, ?) RETURNING fence"
        );
        let fence = sqlx::query_scalar(sql(store))
            .bind(flow.as_str())
            .bind(first.source.0.clone())
            .bind(first.position.bytes().to_vec())
            .bind(first.replay.bytes().to_vec())
            .fetch_one(&mut *connection)
            .await
            .during("store the checkpoint")?;
        let commit =
            Commit { ranges: first.ranges.clone(), exclude: first.excluded.clone(), ..Commit::default() };
        advance(connection, flow, routes, &commit).await?;
        note(connection, flow, routes, &first.holes).await?;
        return Ok((fence, Opened::New));
    };
    let fence = known.get::<i64, _>(0) + 1;
    sqlx::query("UPDATE tidegate_checkpoint SET fence = ? WHERE flow = ?")
        .bind(fence)
        .bind(flow.as_str())
        .execute(&mut *connection)
        .await
        .during("take the flow over")?;
    let checkpoint = Checkpoint {
        source: Identity(known.get(1)),
        position: Position::new(known.get::<Vec<u8>, _>(2)),
        replay: Position::new(known.get::<Vec<u8>, _>(3)),
        ranges: ranges(connection, flow, routes).await?,
        excluded: excluded(connection, flow, routes).await?,
        holes: holes(connection, flow, routes).await?,
    };
    Ok((fence, Opened::Resumed(checkpoint)))
}

/// Whether the flow is still this runner's. To be called in a transaction that holds the write lock.
pub(crate) async fn check_fence(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    fence: i64,
) -> Result<()> {
    let now: Option<i64> = sqlx::query_scalar("SELECT fence FROM tidegate_checkpoint WHERE flow = ?")
        .bind(flow.as_str())
        .fetch_optional(connection)
        .await
        .during("look at the fence")?;
    if now == Some(fence) {
        return Ok(());
    }
    Err(Error::new(code::LEASE_LOST, "another runner has taken this flow over, or its state was removed"))
}

/// Puts a commit into the checkpoint.
pub(crate) async fn advance(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
    commit: &Commit,
) -> Result<()> {
    if commit.position.is_some() || commit.replay.is_some() {
        let bytes = |position: &Option<Position>| position.as_ref().map(|p| p.bytes().to_vec());
        sqlx::query(
            "UPDATE tidegate_checkpoint SET position = coalesce(?, position), replay = coalesce(?, replay)
             WHERE flow = ?",
        )
        .bind(bytes(&commit.position))
        .bind(bytes(&commit.replay))
        .bind(flow.as_str())
        .execute(&mut *connection)
        .await
        .during("store the position")?;
    }
    for table in &commit.forget {
        for text in [
            "DELETE FROM tidegate_ranges WHERE flow = ? AND tbl = ?",
            "DELETE FROM tidegate_excluded WHERE flow = ? AND tbl = ?",
            "DELETE FROM tidegate_holes WHERE flow = ? AND tbl = ?",
        ] {
            sqlx::query(text)
                .bind(flow.as_str())
                .bind(name(routes, *table))
                .execute(&mut *connection)
                .await
                .during("forget a table's progress")?;
        }
    }
    for (table, why) in &commit.exclude {
        sqlx::query("INSERT OR REPLACE INTO tidegate_excluded(flow, tbl, reason) VALUES (?, ?, ?)")
            .bind(flow.as_str())
            .bind(name(routes, *table))
            .bind(why.to_string())
            .execute(&mut *connection)
            .await
            .during("leave a table out")?;
    }
    let forget = "DELETE FROM tidegate_holes WHERE flow = ? AND tbl = ? AND key = ?";
    each(connection, flow, routes, &commit.filled, forget).await?;
    for range in &commit.ranges {
        let key = |key: &Option<Key>| key.as_ref().map(|key| key.0.to_vec());
        sqlx::query(
            "INSERT OR REPLACE INTO tidegate_ranges(flow, tbl, range, after, upto, rows, done)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(flow.as_str())
        .bind(name(routes, range.table))
        .bind(i64::from(range.range))
        .bind(key(&range.rest.after))
        .bind(key(&range.rest.upto))
        .bind(i64::try_from(range.rows).unwrap_or(i64::MAX))
        .bind(range.done)
        .execute(&mut *connection)
        .await
        .during("store a range")?;
    }
    Ok(())
}

/// Notes rows that are not there.
pub(crate) async fn note(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
    holes: &[(usize, Key)],
) -> Result<()> {
    let note = "INSERT OR IGNORE INTO tidegate_holes(flow, tbl, key) VALUES (?, ?, ?)";
    each(connection, flow, routes, holes, note).await
}

/// Runs a statement for each hole.
async fn each(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
    holes: &[(usize, Key)],
    statement: &'static str,
) -> Result<()> {
    for (table, key) in holes {
        sqlx::query(statement)
            .bind(flow.as_str())
            .bind(name(routes, *table))
            .bind(key.0.to_vec())
            .execute(&mut *connection)
            .await
            .during("note what the target lacks")?;
    }
    Ok(())
}

/// A table of a flow is known by its name in the source: its place may be another one in the next run.
fn name(routes: &[Route], table: usize) -> String {
    routes.get(table).map(|route| route.shape.table.name.to_string()).unwrap_or_default()
}

fn place(routes: &[Route], table: &str) -> Option<usize> {
    routes.iter().position(|route| route.shape.table.name.to_string() == table)
}

async fn ranges(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<RangeProgress>> {
    let rows = sqlx::query(
        "SELECT tbl, range, after, upto, rows, done FROM tidegate_ranges WHERE flow = ? ORDER BY range",
    )
    .bind(flow.as_str())
    .fetch_all(connection)
    .await
    .during("read the ranges")?;
    let mut found = Vec::new();
    for row in rows {
        let Some(table) = place(routes, &row.get::<String, _>(0)) else { continue };
        let key = |bytes: Option<Vec<u8>>| -> Result<Option<Key>> {
            bytes.map(|bytes| Row::parse(&bytes).map(|row| Key(row.frame().into()))).transpose()
        };
        found.push(RangeProgress {
            table,
            range: u32::try_from(row.get::<i64, _>(1)).unwrap_or(u32::MAX),
            rest: KeyRange { after: key(row.get(2))?, upto: key(row.get(3))? },
            rows: u64::try_from(row.get::<i64, _>(4)).unwrap_or(0),
            done: row.get(5),
        });
    }
    Ok(found)
}

async fn excluded(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<(usize, Exclusion)>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT tbl, reason FROM tidegate_excluded WHERE flow = ? ORDER BY tbl")
            .bind(flow.as_str())
            .fetch_all(connection)
            .await
            .during("read what is left out")?;
    let known =
        rows.into_iter().filter_map(|(table, why)| Some((place(routes, &table)?, Exclusion::from(why))));
    Ok(known.collect())
}

async fn holes(
    connection: &mut SqliteConnection,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<(usize, Key)>> {
    let rows: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT tbl, key FROM tidegate_holes WHERE flow = ? ORDER BY tbl, key")
            .bind(flow.as_str())
            .fetch_all(connection)
            .await
            .during("read the holes")?;
    let known = rows.into_iter().filter_map(|(table, key)| Some((place(routes, &table)?, key)));
    known.map(|(table, key)| Ok((table, Key(Row::parse(&key)?.frame().into())))).collect()
}
