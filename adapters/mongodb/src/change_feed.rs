//! Delivers the changes of a database from its change stream.
//!
//! An update comes with the document as it is when the stream looks it up, which may be later than the update: the
//! later changes come too. A document that is gone by then is a deletion.
//!
//! Changes of one cluster time are one transaction. It is whole when a change of a later time comes, or when the
//! stream has nothing more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mongodb::Database;
use mongodb::bson::{RawBsonRef, RawDocument, RawDocumentBuf, doc};
use mongodb::change_stream::ChangeStream;
use mongodb::options::FullDocumentType;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Progress};
use tidegate_core::{Changes, Error, Op, Position, Result, Row, RowWriter, Scope, Table};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::During;
use crate::{catalog, codec, extended, stream};

/// How long the server waits for a change.
const WAIT: Duration = Duration::from_millis(100);
/// How many bytes a call gathers before it delivers, and a transaction before it comes in pieces.
const BYTES_LIMIT: usize = 8 << 20;
/// How many changes a call gathers before it delivers.
const CHANGES_LIMIT: usize = 5_000;

/// What happens to documents.
const CHANGES: [&str; 4] = ["insert", "update", "replace", "delete"];
/// What ends a collection, or its name.
const ENDS: [&str; 2] = ["drop", "rename"];

/// How much news waits to be taken.
const QUEUE: usize = 64;
/// How many bytes of it, unless one event has more: each has a whole document.
const QUEUE_BYTES: u32 = 8 << 20;

struct Change {
    table: usize,
    op: Op,
    row: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

/// What the pump has read.
enum News {
    /// A change, and its part of the queue's bytes.
    Event(RawDocumentBuf, OwnedSemaphorePermit),
    /// There is nothing more for now, and this is the stream's token.
    Idle(Option<String>),
}

async fn pump(mut stream: ChangeStream<RawDocumentBuf>, out: Sender<News>) -> Result<()> {
    let room = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
    loop {
        let news = match stream.next_if_any().await.during("read the change stream")? {
            Some(event) => {
                let bytes = u32::try_from(event.as_bytes().len()).unwrap_or(u32::MAX).min(QUEUE_BYTES);
                let taken = Arc::clone(&room).acquire_many_owned(bytes).await;
                News::Event(
                    event,
                    taken.map_err(|e| Error::new(code::INTERNAL, "the queue has ended").because(e))?,
                )
            }
            None => News::Idle(stream.resume_token().as_ref().map(stream::text_of).transpose()?),
        };
        if out.send(news).await.is_err() {
            return Ok(());
        }
    }
}

/// Changes of one time.
struct Group {
    time: u64,
    position: Position,
    committed_at: i64,
    ends: bool,
    changes: Vec<Change>,
    bytes: usize,
}

pub(crate) struct MongoFeed {
    database: Database,
    /// Reads the stream: a read that is dropped half-way would lose what the server has sent already.
    pump: Scope,
    news: Receiver<News>,
    tables: Vec<Arc<Table>>,
    names: Vec<String>,
    /// Everything up to here has been delivered or is in `whole`.
    position: Position,
    /// What may have more changes.
    open: Option<Group>,
    /// What was read and not delivered. It stays here if a call is dropped.
    whole: VecDeque<Group>,
}

impl MongoFeed {
    pub(crate) async fn open(database: Database, tables: &[Arc<Table>], from: &Position) -> Result<Self> {
        let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
        let kinds: Vec<&str> = CHANGES.into_iter().chain(ENDS).collect();
        let wanted = doc! { "$match": { "$or": [
            { "ns.coll": { "$in": &names }, "operationType": { "$in": kinds } },
            { "to.coll": { "$in": &names }, "operationType": "rename" },
            { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
        ] } };
        // The document comes whole: with what of it was changed beside it an event may be larger than the server sends.
        let lean = doc! { "$unset": "updateDescription" };
        let watch = database
            .watch()
            .pipeline([wanted, lean])
            .full_document(FullDocumentType::UpdateLookup)
            // Only so it says which collection it is about.
            .show_expanded_events(true)
            .max_await_time(WAIT);
        let watch = match stream::read(from)? {
            stream::From::Time(time) => watch.start_at_operation_time(time),
            stream::From::Token(text) => watch.start_after(stream::token_of(text)?),
        };
        let stream = watch.await.during("open the change stream")?.with_type::<RawDocumentBuf>();
        let (out, news) = channel(QUEUE);
        let mut scope = Scope::new();
        scope.spawn(pump(stream, out));
        Ok(Self {
            database,
            pump: scope,
            news,
            tables: tables.to_vec(),
            names,
            position: from.clone(),
            open: None,
            whole: VecDeque::new(),
        })
    }

    /// Reads what the stream has. Whether it has nothing more for now.
    async fn gather(&mut self) -> Result<bool> {
        let (mut changes, mut bytes) = (0, 0);
        let Some(mut news) = self.news.recv().await else { return Err(self.broken().await) };
        loop {
            match news {
                News::Event(event, room) => {
                    changes += 1;
                    bytes += event.as_bytes().len();
                    self.take(&event)?;
                    drop(room);
                }
                News::Idle(token) => {
                    self.close_open();
                    self.move_on(token.as_deref())?;
                    return Ok(true);
                }
            }
            // A source that never rests is never idle: what is here is delivered, and nothing is waited for.
            if changes >= CHANGES_LIMIT || bytes >= BYTES_LIMIT {
                return Ok(false);
            }
            match self.news.try_recv() {
                Ok(more) => news = more,
                Err(_) => return Ok(false),
            }
        }
    }

    /// Why there is no more news.
    async fn broken(&mut self) -> Error {
        match self.pump.next().await {
            Some(Err(error)) => error,
            _ => Error::new(code::CONNECTION_LOST, "the change stream has ended"),
        }
    }

    fn close_open(&mut self) {
        if let Some(group) = self.open.take() {
            self.position = group.position.clone();
            self.whole.push_back(group);
        }
    }

    /// The stream's own token rises also while there are no changes of ours.
    fn move_on(&mut self, token: Option<&str>) -> Result<()> {
        if let Some(token) = token {
            let position = stream::behind(stream::time_of(token)?, token);
            if position > self.position {
                self.position = position;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &RawDocument) -> Result<()> {
        let token = event.get_document("_id").and_then(stream::text_of_raw);
        let token = token.map_err(extended::unreadable)?;
        let time = stream::number(event.get_timestamp("clusterTime").map_err(extended::unreadable)?);
        let kind = event.get_str("operationType").map_err(extended::unreadable)?;
        let name = event.get_document("ns").and_then(|ns| ns.get_str("coll")).unwrap_or_default();
        let table = self.names.iter().position(|known| known == name);
        // One that had the name before ours, or will have it once ours is gone, has its own story.
        let ours = table.filter(|table| self.is_same(*table, event.get("collectionUUID")));
        if !CHANGES.contains(&kind) {
            let ended = ours.or_else(|| self.replaced(event));
            if ended.is_none() && ENDS.contains(&kind) {
                return Ok(());
            }
            return Err(Error::new(code::SCHEMA_CHANGED, format!("{kind} of collection {name:?}"))
                .with("table", ended.map_or(name, |table| &self.names[table]))
                .hint("start the migration of this table over"));
        }
        let Some(table) = ours else { return Ok(()) };
        let change = self.change(table, kind, event)?;
        if self.open.as_ref().is_some_and(|open| open.time != time) {
            self.close_open();
        }
        let committed_at = match event.get("wallTime").map_err(extended::unreadable)? {
            Some(RawBsonRef::DateTime(at)) => at.timestamp_millis().saturating_mul(1_000),
            _ => i64::try_from(time >> 32).unwrap_or(0) * 1_000_000,
        };
        let group = self.open.get_or_insert_with(|| Group {
            time,
            position: Position::default(),
            committed_at,
            ends: true,
            changes: Vec::new(),
            bytes: 0,
        });
        group.position = stream::behind(time, &token);
        group.bytes += change.row.as_ref().map_or(0, Vec::len) + change.key.as_ref().map_or(0, Vec::len);
        group.changes.push(change);
        if group.bytes > BYTES_LIMIT {
            let changes = std::mem::take(&mut group.changes);
            group.bytes = 0;
            // Behind this change: the time alone is where a flow may begin, before all changes of that time.
            let position = group.position.clone();
            self.whole.push_back(Group { time, position, committed_at, ends: false, changes, bytes: 0 });
        }
        Ok(())
    }

    /// Whether what an event says of a collection is about the one that was described.
    fn is_same(&self, table: usize, said: mongodb::bson::error::Result<Option<RawBsonRef<'_>>>) -> bool {
        let described = self.tables[table].native_id;
        match said {
            Ok(Some(RawBsonRef::Binary(uuid))) if described != 0 => catalog::number(uuid.bytes) == described,
            _ => true,
        }
    }

    /// Which table an event puts another collection in the place of, as an aggregation with `$out` does.
    fn replaced(&self, event: &RawDocument) -> Option<usize> {
        let to = event.get_document("to").and_then(|to| to.get_str("coll")).ok()?;
        let table = self.names.iter().position(|known| known == to)?;
        match event.get_document("operationDescription").map(|said| said.get("dropTarget")) {
            // Nobody had the name.
            Ok(Ok(None)) => None,
            Ok(removed) => self.is_same(table, removed).then_some(table),
            Err(_) => Some(table),
        }
    }

    fn change(&self, table: usize, kind: &str, event: &RawDocument) -> Result<Change> {
        let of = &self.tables[table];
        let id =
            event.get_document("documentKey").and_then(|key| key.get("_id")).map_err(extended::unreadable)?;
        let id = id.ok_or_else(|| Error::new(code::STREAM_MALFORMED, "a change has no _id"))?;
        let document = match event.get("fullDocument").map_err(extended::unreadable)? {
            Some(RawBsonRef::Document(document)) if kind != "delete" => Some(document),
            _ => None,
        };
        let mut frame = Vec::new();
        let mut writer = RowWriter::new(&mut frame);
        let Some(document) = document else {
            if !codec::push_key(of, id, &mut writer)? {
                return Err(of.surplus("_id"));
            }
            writer.finish();
            return Ok(Change { table, op: Op::Delete, row: None, key: Some(frame) });
        };
        if let Some(field) = codec::push_row(of, document, &mut writer)?.first() {
            return Err(of.surplus(field));
        }
        writer.finish();
        let op = if kind == "insert" { Op::Insert } else { Op::Update };
        Ok(Change { table, op, row: Some(frame), key: None })
    }

    fn deliver(&mut self, out: &mut Changes) -> Result<()> {
        while let Some(group) = self.whole.pop_front() {
            for change in &group.changes {
                let row = change.row.as_deref().map(Row::parse).transpose()?;
                let key = change.key.as_deref().map(Row::parse).transpose()?;
                out.push_rows(change.table, change.op, row, key);
            }
            out.end(group.time, group.position, group.committed_at, group.ends);
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for MongoFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        let is_idle = self.whole.is_empty() && self.gather().await?;
        if is_idle && self.whole.is_empty() && want.is_some_and(|want| *want > self.position) {
            stream::mark(&self.database).await?;
            self.gather().await?;
        }
        self.deliver(out)?;
        Ok(Progress { position: self.position.clone(), behind: 0 })
    }

    async fn acknowledge(&mut self, _: &Position) -> Result<()> {
        // The server forgets by the size of its log alone.
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
