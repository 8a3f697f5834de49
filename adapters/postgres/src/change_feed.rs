//! The changes of a flow's tables, from the server's log.
//!
//! ```text
//!   server ──frames──▶ pump ──batches──▶ reader ──▶ Changes
//!             ◀─acknowledged positions─┘    └─ Spill: transactions that have not ended
//! ```

mod pump;
mod reader;
mod relations;
mod spill;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Identity, Progress};
use tidegate_core::{Changes, Error, FlowName, Position, Result, Scope, Table, TableName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::catalog::{capture, identity};
use crate::change_feed::pump::{BATCHES_AHEAD, Order, pump};
use crate::change_feed::reader::Reader;
use crate::connect::Session;
use crate::error::{self, from_driver};
use crate::lsn::Lsn;
use crate::sql;
use crate::store::PostgresStore;
use crate::wire::{Replication, Start, WalFrame};

/// How long a call waits when there is nothing.
const IDLE: Duration = Duration::from_secs(1);
/// After this time without progress the server is made to write to its log.
const PATIENCE: Duration = Duration::from_millis(250);
/// Between two questions how far the server is.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// Between two looks at the end of the log.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct PostgresFeed {
    store: PostgresStore,
    publication: String,
    /// For what the stream cannot say; opened again if the server ended it.
    side: Session,
    reader: Reader,
    tables: Vec<Arc<Table>>,
    orders: mpsc::UnboundedSender<Order>,
    frames: mpsc::Receiver<Vec<WalFrame>>,
    scope: Scope,
    /// The position of the last answer.
    told: Lsn,
    /// What was wanted last, and since when.
    wanted: Option<(Lsn, Instant)>,
    /// When the server was last asked how far it is.
    asked: Option<Instant>,
    /// The end of the log when it was last looked at.
    log_end: Lsn,
    looked: Option<Instant>,
}

const SLOT: &str = "
    SELECT s.confirmed_flush_lsn::text, coalesce(s.wal_status, ''), pg_current_wal_insert_lsn()::text,
        pg_snapshot_xmax(pg_current_snapshot())::text
    FROM pg_replication_slots s WHERE s.slot_name = $1 AND s.database = current_database()";

fn numbered(tables: &[Arc<Table>]) -> impl Iterator<Item = (u32, &TableName)> {
    tables.iter().map(|table| (table.native_id, &table.name))
}

impl PostgresFeed {
    pub(crate) async fn open(
        store: &PostgresStore,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Self> {
        let side = store.session().await?;
        let found = identity(&side).await?;
        if found != *source {
            return Err(Error::new(code::SOURCE_REPLACED, "the source is another database, or was restored")
                .with("began_with", &source.0)
                .with("found", &found.0));
        }
        let name = capture::name(flow);
        let named = |error: Error| error.with("slot", &name);
        let from = Lsn(from.to_u64().unwrap_or(0));
        let row = side.query_opt(SLOT, &[&name]).await.map_err(|e| from_driver(e, "open feed"))?;
        let row = row.ok_or_else(|| named(Error::new(code::SLOT_LOST, "the replication slot is gone")))?;
        let confirmed: Lsn = row.get::<_, Option<&str>>(0).unwrap_or("0/0").parse()?;
        let log_end: Lsn = row.get::<_, &str>(2).parse()?;
        if row.get::<_, &str>(1) == "lost" {
            return Err(named(Error::new(code::SLOT_LOST, "the server gave up the log that the slot needs")));
        }
        capture::check(&side, &name, numbered(tables)).await?;
        if confirmed > from {
            return Err(named(
                Error::new(code::SLOT_RECREATED, "the slot begins after the place where the flow stands")
                    .with("slot_at", confirmed)
                    .with("flow_at", from),
            ));
        }
        if from > log_end {
            return Err(Error::new(code::SOURCE_REPLACED, "the flow is ahead of the source's log")
                .with("log_end", log_end)
                .with("flow_at", from));
        }
        let reference: u64 = row
            .get::<_, &str>(3)
            .parse()
            .map_err(|_| Error::new(code::STREAM_MALFORMED, "the server's snapshot cannot be read"))?;
        // One byte earlier: the server leaves out what commits before the position, and that of a transaction's
        // piece may lie behind the start of its commit.
        let start = Start::new(&name, [&name])
            .with_position(Lsn(from.0.saturating_sub(1)))
            .with_streaming(true)
            .with_binary(true);
        let mut replication = Replication::connect(store.settings()).await?;
        // This may be another server than the one asked before, where an address leads to several.
        let own = replication.identify().await?;
        if !source.0.starts_with(&format!("postgres:{}/{}/", own.system, own.timeline)) {
            return Err(Error::new(code::SOURCE_REPLACED, "the address leads to more than one server")
                .with("began_with", &source.0));
        }
        let stream = replication.start(&start).await?;
        let (orders, orders_out) = mpsc::unbounded_channel();
        let (frames_in, frames) = mpsc::channel(BATCHES_AHEAD);
        let mut scope = Scope::new();
        scope.spawn(pump(stream, confirmed, orders_out, frames_in));
        Ok(Self {
            store: store.clone(),
            publication: name,
            side,
            reader: Reader::new(tables, reference, from),
            tables: tables.to_vec(),
            orders,
            frames,
            scope,
            told: from,
            wanted: None,
            asked: None,
            log_end,
            looked: None,
        })
    }

    /// The error that ended the stream.
    async fn ended(&mut self) -> Error {
        let error = match self.scope.next().await {
            Some(Err(error)) => error,
            _ => error::lost("stream"),
        };
        // Without its publication the stream ends with words that help nobody.
        match self.check_publication().await {
            Err(lost) if lost.code() == code::SLOT_LOST => lost.because(error),
            _ => error,
        }
    }

    /// The server leaves out what is not published, and says nothing.
    async fn check_publication(&mut self) -> Result<()> {
        self.side().await?;
        capture::check(&self.side, &self.publication, numbered(&self.tables)).await
    }

    async fn side(&mut self) -> Result<&Session> {
        if self.side.is_closed() {
            self.side = self.store.session().await?;
        }
        Ok(&self.side)
    }

    /// Looks where the log ends, now and then.
    async fn look(&mut self) -> Result<()> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        let sql = "SELECT pg_current_wal_flush_lsn()::text";
        let row = self.side().await?.query_one(sql, &[]).await.map_err(|e| from_driver(e, "look"))?;
        self.log_end = row.get::<_, &str>(0).parse()?;
        self.check_names().await?;
        self.check_publication().await?;
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// A table that was renamed, moved or dropped, and perhaps has a successor of its name, sends changes under another
    /// name or none at all: the stream alone does not tell.
    async fn check_names(&mut self) -> Result<()> {
        let names: Vec<String> = self.tables.iter().map(|table| sql::table(&table.name)).collect();
        let numbers: Vec<u32> = self.tables.iter().map(|table| table.native_id).collect();
        let sql = "SELECT t.at, to_regclass(t.name) IS NULL FROM unnest($1::text[], $2::oid[]) WITH ORDINALITY t (name, id, at)
            WHERE to_regclass(t.name) IS DISTINCT FROM t.id::regclass LIMIT 1";
        let found = self.side().await?.query_opt(sql, &[&names, &numbers]).await;
        let Some(row) = found.map_err(|e| from_driver(e, "look"))? else { return Ok(()) };
        let at = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or_default();
        let what = if row.get(1) {
            "the table is gone, renamed or moved"
        } else {
            "another table has taken the name"
        };
        Err(Error::new(code::SCHEMA_CHANGED, what).with("table", &self.tables[at].name))
    }

    /// Rows that lack a column are from before it was added, if it is there now; else it was dropped.
    async fn check_short(&mut self) -> Result<()> {
        while let Some((table, column)) = self.reader.short() {
            let table = Arc::clone(&self.tables[table]);
            let column = &table.columns[column].name;
            let sql = "SELECT EXISTS (SELECT FROM pg_attribute
                WHERE attrelid = to_regclass($1) AND attname = $2 AND attnum > 0 AND NOT attisdropped)";
            let row = self.side().await?.query_one(sql, &[&sql::table(&table.name), column]).await;
            if !row.map_err(|e| from_driver(e, "look"))?.get::<_, bool>(0) {
                return Err(Error::new(code::SCHEMA_CHANGED, "a column is gone")
                    .with("table", &table.name)
                    .with("column", column));
            }
            // Only now: a dropped call has to ask again.
            self.reader.looked_up();
        }
        Ok(())
    }

    /// Makes the position rise past what is wanted.
    async fn push(&mut self, want: Lsn) -> Result<()> {
        let since = match self.wanted {
            Some((wanted, since)) if wanted == want => since,
            _ => {
                let now = Instant::now();
                self.wanted = Some((want, now));
                now
            }
        };
        // While changes come in, the position rises by itself: a question for each would only add to them.
        let is_busy = self.reader.quiet() < ASK_EVERY && since.elapsed() >= ASK_EVERY;
        if is_busy || self.asked.is_some_and(|at| at.elapsed() < ASK_EVERY) {
            return Ok(());
        }
        if since.elapsed().min(self.reader.quiet()) >= PATIENCE {
            // A record of our own, flushed: an open transaction's would keep the end of the log from the server's
            // sender for as long as it is open.
            let sql = "SELECT pg_logical_emit_message(true, 'tidegate', '')";
            self.side().await?.batch_execute(sql).await.map_err(|e| from_driver(e, "emit"))?;
            self.wanted = None;
        }
        self.asked = Some(Instant::now());
        // If nobody listens, the stream has ended: its error is found where its frames are waited for.
        let _ = self.orders.send(Order::Ask);
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for PostgresFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        let want = want.and_then(Position::to_u64).map(Lsn);
        let end = Instant::now() + IDLE;
        self.look().await?;
        loop {
            while self.reader.has_room() {
                match self.frames.try_recv() {
                    Ok(batch) => self.reader.add(batch),
                    Err(_) => break,
                }
                self.reader.read()?;
            }
            self.reader.read()?;
            if self.reader.has_something() {
                break;
            }
            let reached = want.filter(|want| self.reader.position() < *want);
            if Instant::now() >= end
                || reached.is_none() && want.is_some() && self.reader.position() > self.told
            {
                break;
            }
            let wait = match reached {
                Some(want) => {
                    self.push(want).await?;
                    (Instant::now() + ASK_EVERY).min(end)
                }
                None => end,
            };
            match tokio::time::timeout_at(wait, self.frames.recv()).await {
                Ok(Some(batch)) => self.reader.add(batch),
                Ok(None) => return Err(self.ended().await),
                Err(_) => {}
            }
        }
        self.check_short().await?;
        self.reader.hand_over(out);
        self.told = self.reader.position();
        let log_end = self.log_end.max(self.reader.sent());
        Ok(Progress { position: Position::from_u64(self.told.0), behind: log_end.bytes_since(self.told) })
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        let Some(upto) = upto.to_u64() else { return Ok(()) };
        match self.orders.send(Order::Acknowledge(Lsn(upto))) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended().await),
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let Self { orders, scope, side, frames, .. } = *self;
        let _ = orders.send(Order::Finish);
        // The pump may be handing on: it has to find somebody, or nobody, there.
        drop(frames);
        let result = scope.join().await;
        side.close().await;
        result
    }
}
