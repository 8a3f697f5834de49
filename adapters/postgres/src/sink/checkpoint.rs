//! How far the target is, as it says itself: our own tables, written in the transaction of the rows.

use tidegate_core::error::code;
use tidegate_core::port::{Checkpoint, Commit, Exclusion, Identity, KeyRange, Opened, RangeProgress};
use tidegate_core::{Error, FlowName, Key, Position, Result, Row};
use tokio_postgres::{Client, Statement};

use crate::connect::Session;
use crate::error::from_driver;

fn failed(error: tokio_postgres::Error) -> Error {
    from_driver(error, "checkpoint")
}

/// Takes the flow over, in a transaction. `names` are the tables by their place. Returns the fence and what was there.
pub(crate) async fn open(
    transaction: &Client,
    ledger: &Statements,
    name: &FlowName,
    names: &[&str],
    first: &Checkpoint,
) -> Result<(i64, Opened)> {
    let flow = name.as_str();
    // The first fence is the time, so that nobody has it who opened a flow of this name that was forgotten since.
    let sql = "INSERT INTO tidegate.flows AS f (flow, source, position, replay, fence)
        VALUES ($1, $2, $3, $4, (extract(epoch FROM clock_timestamp()) * 1000000)::int8)
        ON CONFLICT (flow) DO UPDATE SET fence = f.fence + 1
        RETURNING fence, source, position, replay, xmax = 0";
    let (position, replay) = (first.position.bytes(), first.replay.bytes());
    let row =
        transaction.query_one(sql, &[&flow, &first.source.0, &position, &replay]).await.map_err(failed)?;
    let fence = row.get(0);
    if row.get::<_, bool>(4) {
        let known =
            Commit { ranges: first.ranges.clone(), exclude: first.excluded.clone(), ..Commit::default() };
        ledger.write(transaction, name, fence, names, &known).await?;
        note(transaction, name, names, &first.holes).await?;
        return Ok((fence, Opened::New));
    }
    let mut checkpoint = Checkpoint::first(Identity(row.get(1)), Position::new(row.get::<_, Vec<u8>>(2)));
    checkpoint.replay = Position::new(row.get::<_, Vec<u8>>(3));
    let place = |name: &str| names.iter().position(|known| *known == name);
    let key = |bytes: Option<Vec<u8>>| bytes.map(|bytes| Key::try_from(bytes.into_boxed_slice())).transpose();
    let sql = "SELECT name, range, after_key, upto_key, rows, done FROM tidegate.ranges WHERE flow = $1
        ORDER BY name, range";
    for row in transaction.query(sql, &[&flow]).await.map_err(failed)? {
        // A table that is not in the plan any more keeps its ledger for when it is again.
        let Some(table) = place(row.get(0)) else { continue };
        checkpoint.ranges.push(RangeProgress {
            table,
            range: u32::try_from(row.get::<_, i64>(1)).unwrap_or(0),
            rest: KeyRange { after: key(row.get(2))?, upto: key(row.get(3))? },
            rows: row.get::<_, i64>(4).unsigned_abs(),
            done: row.get(5),
        });
    }
    let sql = "SELECT name, reason FROM tidegate.left_out WHERE flow = $1 ORDER BY name";
    for row in transaction.query(sql, &[&flow]).await.map_err(failed)? {
        if let Some(table) = place(row.get(0)) {
            checkpoint.excluded.push((table, Exclusion::from(row.get::<_, String>(1))));
        }
    }
    let sql = "SELECT name, key FROM tidegate.holes WHERE flow = $1 ORDER BY name, key";
    for row in transaction.query(sql, &[&flow]).await.map_err(failed)? {
        if let Some(table) = place(row.get(0)) {
            checkpoint.holes.push((table, Key(Row::parse(row.get(1))?.frame().into())));
        }
    }
    Ok((fence, Opened::Resumed(checkpoint)))
}

/// What every commit runs, prepared once.
#[derive(Debug)]
pub(crate) struct Statements {
    flow: Statement,
    range: Statement,
}

impl Statements {
    /// To be called when our tables are there.
    pub(crate) async fn prepare(session: &Session) -> Result<Self> {
        // What was seen once stays seen: the source may have forgotten what lies before the highest place so far.
        let flow = "UPDATE tidegate.flows SET position = coalesce($3, position),
            replay = greatest(replay, coalesce($4, replay)) WHERE flow = $1 AND fence = $2";
        let range = "INSERT INTO tidegate.ranges (flow, name, range, after_key, upto_key, rows, done)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (flow, name, range) DO UPDATE SET after_key = excluded.after_key,
                upto_key = excluded.upto_key, rows = excluded.rows, done = excluded.done";
        let flow = session.prepare(flow).await.map_err(failed)?;
        Ok(Self { flow, range: session.prepare(range).await.map_err(failed)? })
    }

    /// Writes a commit into the running transaction, if the flow is still ours.
    pub(crate) async fn write(
        &self,
        session: &Client,
        flow: &FlowName,
        fence: i64,
        names: &[&str],
        commit: &Commit,
    ) -> Result<()> {
        let flow = flow.as_str();
        let position = commit.position.as_ref().map(Position::bytes);
        let replay = commit.replay.as_ref().map(Position::bytes);
        if session.execute(&self.flow, &[&flow, &fence, &position, &replay]).await.map_err(failed)? == 0 {
            return Err(Error::new(code::LEASE_LOST, "another runner has taken this flow over"));
        }
        for table in &commit.forget {
            for sql in [
                "DELETE FROM tidegate.ranges WHERE flow = $1 AND name = $2",
                "DELETE FROM tidegate.left_out WHERE flow = $1 AND name = $2",
                "DELETE FROM tidegate.holes WHERE flow = $1 AND name = $2",
            ] {
                session.execute(sql, &[&flow, &names[*table]]).await.map_err(failed)?;
            }
        }
        for (table, why) in &commit.exclude {
            let sql = "INSERT INTO tidegate.left_out (flow, name, reason) VALUES ($1, $2, $3)
                ON CONFLICT (flow, name) DO UPDATE SET reason = excluded.reason";
            session.execute(sql, &[&flow, &names[*table], &why.to_string()]).await.map_err(failed)?;
        }
        if !commit.filled.is_empty() {
            let (filled_names, keys) = columns(names, &commit.filled);
            let sql = "DELETE FROM tidegate.holes h USING unnest($2::text[], $3::bytea[]) f (name, key)
                WHERE h.flow = $1 AND h.name = f.name AND sha256(h.key) = sha256(f.key)";
            session.execute(sql, &[&flow, &filled_names, &keys]).await.map_err(failed)?;
        }
        for range in &commit.ranges {
            let bytes = |key: &Option<Key>| key.as_ref().map(|key| key.0.to_vec());
            let rows = i64::try_from(range.rows).unwrap_or(i64::MAX);
            session
                .execute(
                    &self.range,
                    &[
                        &flow,
                        &names[range.table],
                        &i64::from(range.range),
                        &bytes(&range.rest.after),
                        &bytes(&range.rest.upto),
                        &rows,
                        &range.done,
                    ],
                )
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// Notes rows that are not there, in the running transaction.
pub(crate) async fn note(
    session: &Client,
    flow: &FlowName,
    names: &[&str],
    holes: &[(usize, Key)],
) -> Result<()> {
    if holes.is_empty() {
        return Ok(());
    }
    let (names, keys) = columns(names, holes);
    let sql = "INSERT INTO tidegate.holes (flow, name, key) SELECT $1, n.name, n.key
        FROM unnest($2::text[], $3::bytea[]) n (name, key) ON CONFLICT DO NOTHING";
    session.execute(sql, &[&flow.as_str(), &names, &keys]).await.map_err(failed)?;
    Ok(())
}

fn columns<'a>(names: &[&'a str], holes: &'a [(usize, Key)]) -> (Vec<&'a str>, Vec<&'a [u8]>) {
    holes.iter().map(|(table, key)| (names[*table], &*key.0)).unzip()
}
