//! Reads documents in the order of `_id`, each chunk at one cluster time.
//!
//! Bounds are bounds of the index and not conditions: a condition `$gt` passes over values of other types, and a
//! collection may have an `_id` of every type.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::TryStreamExt;
use mongodb::bson::raw::{CStr, cstr};
use mongodb::bson::{Binary, Bson, Document, RawArrayBuf, RawBson, RawDocument, RawDocumentBuf, doc};
use mongodb::{ClientSession, Database};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Chunk, Crawler, KeyRange, Limit};
use tidegate_core::{AsOf, Error, Key, Result, RowWriter, Rows, Shape, Table};

use crate::error::During;
use crate::stream::Floor;
use crate::{catalog, codec, extended, stream};

/// Keys looked at to cut a table, for each part.
const SAMPLES_PER_PART: usize = 50;
/// How often a read is tried that the server could not do at one instant.
const ATTEMPTS: u32 = 6;

pub(crate) struct MongoCrawler {
    database: Database,
    /// The server's own ids of collections: one of the same name may be another one.
    ids: HashMap<String, Binary>,
    floor: Floor,
}

impl MongoCrawler {
    pub(crate) fn new(database: Database, floor: Floor) -> Self {
        Self { database, ids: HashMap::new(), floor }
    }

    async fn id(&mut self, table: &Table) -> Result<Binary> {
        let full = table.name.to_string();
        if let Some(id) = self.ids.get(&full) {
            return Ok(id.clone());
        }
        let filter = doc! { "name": &full };
        let mut listed =
            self.database.list_collections().filter(filter).await.during("look for a collection")?;
        let found = listed.try_next().await.during("look for a collection")?;
        let id = found.and_then(|one| one.info.uuid).ok_or_else(|| {
            Error::new(code::TABLE_MISSING, format!("there is no collection {full}")).with("table", &full)
        })?;
        if ![0, catalog::number(&id.bytes)].contains(&table.native_id) {
            let text = format!("the collection {full} is not the one it was");
            return Err(Error::new(code::SCHEMA_CHANGED, text).with("table", &full));
        }
        self.ids.insert(full, id.clone());
        Ok(id)
    }

    async fn session(&self) -> Result<ClientSession> {
        self.database.client().start_session().snapshot(true).await.during("start a session")
    }

    /// A command that fails if the collection is not the one it was.
    async fn find(&mut self, table: &Table) -> Result<RawDocumentBuf> {
        let mut command = RawDocumentBuf::new();
        command.append(cstr!("find"), table.name.to_string());
        command.append(cstr!("collectionUUID"), self.id(table).await?);
        Ok(command)
    }

    /// Gives each document of a command's answer until told to stop.
    async fn each(
        &self,
        session: &mut ClientSession,
        command: RawDocumentBuf,
        mut take: impl FnMut(&RawDocument) -> Result<bool> + Send,
    ) -> Result<()> {
        let run = self.database.run_raw_cursor_command(command).session(&mut *session);
        let mut cursor = run.await.during("read documents")?;
        while cursor.advance(session).await.during("read documents")? {
            if !take(cursor.current())? {
                break;
            }
        }
        Ok(())
    }

    async fn read_once(
        &mut self,
        table: &Table,
        range: &KeyRange,
        limit: Limit,
        out: &mut Rows,
    ) -> Result<Chunk> {
        let floor = self.floor.now();
        let (start, bytes) = (out.len(), out.bytes().len());
        let rows = limit.rows.max(1);
        let is_full = |out: &Rows| {
            out.len() - start == rows || out.len() > start && out.bytes().len() - bytes >= limit.bytes
        };
        let after = range.after.as_ref().map(|key| Bound::of(table, key)).transpose()?;
        let upto = match (&range.upto, &after) {
            (Some(key), _) => Some(Bound::of(table, key)?),
            // A lower bound alone leaves the last key of all out.
            (None, Some(after)) => Bound::last_behind(after),
            (None, None) => None,
        };
        if let (Some(after), Some(upto)) = (&after, &upto)
            && after.identity == upto.identity
        {
            return Ok(Chunk { as_of: self.as_of().await?, next: None, surplus: Vec::new() });
        }
        let mut session = self.session().await?;
        let mut command = self.find(table).await?;
        command.append(cstr!("hint"), keyed(cstr!("_id"), RawBson::Int32(1)));
        // The lower bound is inclusive and its row may be there, so that it is passed over; the upper one is exclusive.
        if let Some(after) = &after {
            command.append(cstr!("min"), keyed(cstr!("_id"), after.id.clone()));
        }
        if let Some(upto) = &upto {
            command.append(cstr!("max"), keyed(cstr!("_id"), upto.id.clone()));
        }
        let wanted = i32::try_from(rows + usize::from(after.is_some())).unwrap_or(i32::MAX);
        command.append(cstr!("limit"), wanted);
        command.append(cstr!("batchSize"), wanted);
        let (mut is_first, mut surplus) = (true, Vec::new());
        self.each(&mut session, command, |document| {
            if std::mem::take(&mut is_first)
                && let Some(after) = &after
                && after.is_of(document)?
            {
                return Ok(true);
            }
            push(table, document, out, &mut surplus)?;
            Ok(!is_full(out))
        })
        .await?;
        let mut next = None;
        if is_full(out) {
            next = Some(cut_key(table, out));
        } else if let Some(upto) = upto {
            let mut last = self.find(table).await?;
            last.append(cstr!("filter"), keyed(cstr!("_id"), equal(upto.id)));
            let take = |document: &RawDocument| push(table, document, out, &mut surplus).map(|()| true);
            self.each(&mut session, last, take).await?;
        }
        Ok(Chunk { as_of: self.instant(&session, floor)?, next, surplus })
    }

    async fn fetch_once(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        if table.key_columns().any(|column| column.name != "_id") {
            return Err(Error::new(code::CAPABILITY_MISSING, "documents are found by their _id alone")
                .hint("rows of MongoDB cannot be folded into others"));
        }
        let floor = self.floor.now();
        let mut ids = RawArrayBuf::new();
        for key in keys {
            ids.push(codec::id_of_key(table, key.row())?);
        }
        let mut session = self.session().await?;
        let mut command = self.find(table).await?;
        command.append(cstr!("filter"), keyed(cstr!("_id"), keyed(cstr!("$in"), RawBson::Array(ids)).into()));
        let mut surplus = Vec::new();
        let take = |document: &RawDocument| push(table, document, out, &mut surplus).map(|()| true);
        self.each(&mut session, command, take).await?;
        match surplus.first() {
            Some((_, field)) => Err(table.surplus(field)),
            None => self.instant(&session, floor),
        }
    }

    /// When a session's reads were.
    fn instant(&self, session: &ClientSession, floor: u64) -> Result<AsOf> {
        let read_at = session
            .snapshot_time()
            .ok_or_else(|| Error::new(code::INTERNAL, "the server does not say when a read was"))?;
        self.floor.pass(floor, read_at)?;
        Ok(stream::instant(read_at))
    }

    async fn as_of_once(&self) -> Result<AsOf> {
        let floor = self.floor.now();
        let read_at = stream::read_time(&self.database).await?;
        self.floor.pass(floor, read_at)?;
        Ok(stream::instant(read_at))
    }

    async fn split_once(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let floor = self.floor.now();
        let mut session = self.session().await?;
        let mut command = self.find(table).await?;
        command.append(cstr!("sort"), keyed(cstr!("_id"), RawBson::Int32(-1)));
        command.append(cstr!("projection"), keyed(cstr!("_id"), RawBson::Int32(1)));
        command.append(cstr!("limit"), 1_i32);
        let mut last = None;
        self.each(&mut session, command, |document| {
            let id = Bson::try_from(codec::id_of(document)?).map_err(extended::unreadable)?;
            last = Some((key_of(table, document)?, id));
            Ok(true)
        })
        .await?;
        let Some((last, last_id)) = last else { return Ok(vec![KeyRange::default()]) };
        // A bound from before would leave rows behind it to nobody.
        self.instant(&session, floor)?;
        let mut samples = Vec::new();
        if parts > 1 {
            let size = i64::try_from(parts * SAMPLES_PER_PART).unwrap_or(i64::MAX);
            // Within an expression values of all types compare.
            let pipeline = [
                doc! { "$sample": { "size": size } },
                doc! { "$project": { "_id": 1 } },
                doc! { "$match": { "$expr": { "$lt": ["$_id", { "$literal": last_id }] } } },
                doc! { "$sort": { "_id": 1 } },
            ];
            let collection = self.database.collection::<Document>(&table.name.to_string());
            let mut cursor = collection.aggregate(pipeline).await.during("look at some keys")?;
            while cursor.advance().await.during("look at some keys")? {
                samples.push(key_of(table, cursor.current())?);
            }
        }
        let mut ranges = Vec::new();
        let (mut after, mut seen) = (None, Vec::new());
        for part in 1..parts {
            let Some(upto) = samples.get(part * samples.len() / parts) else { break };
            let identity = Bound::of(table, upto)?.identity;
            if seen != identity {
                seen = identity;
                ranges.push(KeyRange { after: after.replace(upto.clone()), upto: Some(upto.clone()) });
            }
        }
        ranges.push(KeyRange { after, upto: Some(last) });
        Ok(ranges)
    }
}

/// A bound of a range.
struct Bound {
    id: RawBson,
    identity: Vec<u8>,
}

impl Bound {
    fn of(table: &Table, key: &Key) -> Result<Self> {
        let id = codec::id_of_key(table, key.row())?;
        let mut identity = Vec::new();
        codec::identity(id.as_raw_bson_ref(), &mut identity)?;
        Ok(Self { id, identity })
    }

    fn last_behind(after: &Self) -> Option<Self> {
        (after.id != RawBson::MaxKey).then(|| Self { id: RawBson::MaxKey, identity: Vec::new() })
    }

    fn is_of(&self, document: &RawDocument) -> Result<bool> {
        let mut identity = Vec::new();
        codec::identity(codec::id_of(document)?, &mut identity)?;
        Ok(identity == self.identity)
    }
}

fn keyed(name: &CStr, value: RawBson) -> RawDocumentBuf {
    let mut document = RawDocumentBuf::new();
    document.append(name, value);
    document
}

fn equal(id: RawBson) -> RawBson {
    keyed(cstr!("$eq"), id).into()
}

fn shape(table: &Table) -> Shape {
    Shape { table: table.clone().into(), codec: std::sync::Arc::new(codec::Bson) }
}

fn key_of(table: &Table, document: &RawDocument) -> Result<Key> {
    let mut frame = Vec::new();
    let mut writer = RowWriter::new(&mut frame);
    codec::push_key(table, codec::id_of(document)?, &mut writer)?;
    writer.finish();
    Ok(Key(frame.into()))
}

fn push(
    table: &Table,
    document: &RawDocument,
    out: &mut Rows,
    surplus: &mut Vec<(usize, String)>,
) -> Result<()> {
    let (at, mut pushed) = (out.len(), Ok(Vec::new()));
    out.push_with(|row| pushed = codec::push_row(table, document, row));
    surplus.extend(pushed?.into_iter().map(|field| (at, field)));
    Ok(())
}

fn cut_key(table: &Table, rows: &Rows) -> Key {
    shape(table).cut_key(rows.row(rows.len() - 1))
}

/// Whether a read may be tried again, after a moment.
async fn may_again<T>(result: &Result<T>, attempt: &mut u32) -> bool {
    let is_in_the_way =
        |error: &Error| error.verdict() == Verdict::Retry && error.code() == code::STORE_FAILED;
    *attempt += 1;
    let again = *attempt < ATTEMPTS && result.as_ref().is_err_and(is_in_the_way);
    if again {
        tokio::time::sleep(std::time::Duration::from_millis(20 << *attempt)).await;
    }
    again
}

/// Removes what a read appended that failed half-way.
fn without_rest(rows: &mut Rows, length: usize) {
    if rows.len() > length {
        let mut kept = Rows::new();
        rows.iter().take(length).for_each(|row| kept.push(row));
        *rows = kept;
    }
}

#[async_trait]
impl Crawler for MongoCrawler {
    async fn split(&mut self, table: &Table, parts: usize) -> Result<Vec<KeyRange>> {
        let mut attempt = 0;
        loop {
            let split = self.split_once(table, parts).await;
            if !may_again(&split, &mut attempt).await {
                return split;
            }
        }
    }

    async fn read(&mut self, table: &Table, range: &KeyRange, limit: Limit, out: &mut Rows) -> Result<Chunk> {
        let (before, mut attempt) = (out.len(), 0);
        loop {
            let read = self.read_once(table, range, limit, out).await;
            if !may_again(&read, &mut attempt).await {
                return read.map_err(|error| error.with("table", &table.name));
            }
            without_rest(out, before);
        }
    }

    async fn fetch(&mut self, table: &Table, keys: &[Key], out: &mut Rows) -> Result<AsOf> {
        let (before, mut attempt) = (out.len(), 0);
        loop {
            let fetched = self.fetch_once(table, keys, out).await;
            if !may_again(&fetched, &mut attempt).await {
                return fetched.map_err(|error| error.with("table", &table.name));
            }
            without_rest(out, before);
        }
    }

    async fn as_of(&mut self) -> Result<AsOf> {
        let mut attempt = 0;
        loop {
            let as_of = self.as_of_once().await;
            if !may_again(&as_of, &mut attempt).await {
                return as_of;
            }
        }
    }
}
