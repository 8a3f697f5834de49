//! How far flows are, in collections beside the rows: what a target commits together with them.

use futures::TryStreamExt;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::{ClientSession, Database};
use tidegate_core::error::code;
use tidegate_core::port::{Checkpoint, Commit, Exclusion, Identity, KeyRange, Opened, RangeProgress, Route};
use tidegate_core::{Error, FlowName, Key, Position, Result, Row};

use crate::catalog::make;
use crate::error::{During, from_answer};
use crate::identity::IDENTITIES;

const CHECKPOINT: &str = "tidegate.checkpoint";
const FENCES: &str = "tidegate.fences";
const RANGES: &str = "tidegate.ranges";
const EXCLUDED: &str = "tidegate.excluded";
const HOLES: &str = "tidegate.holes";

/// The collections of the ledger.
pub(crate) const COLLECTIONS: [&str; 6] = [CHECKPOINT, FENCES, RANGES, EXCLUDED, HOLES, IDENTITIES];

/// Makes the collections: some servers do not make them inside a transaction.
pub(crate) async fn create(database: &Database) -> Result<()> {
    for name in COLLECTIONS {
        make(database, name).await?;
    }
    Ok(())
}

/// Ends the transactions that an earlier runner left open. A runner that was killed cannot, and the server keeps them,
/// with their hold on the fences, for a minute.
pub(crate) async fn end_earlier(database: &Database, flow: &FlowName) -> Result<()> {
    let mut sessions = Vec::new();
    for (name, of_flow) in
        [(CHECKPOINT, doc! { "_id": flow.as_str() }), (FENCES, doc! { "_id.flow": flow.as_str() })]
    {
        let mut known =
            database.collection::<Document>(name).find(of_flow).await.during("look at the fences")?;
        while let Some(known) = known.try_next().await.during("look at the fences")? {
            sessions.extend(known.get_document("session").ok().cloned());
        }
    }
    if !sessions.is_empty() {
        let command = doc! { "killSessions": sessions };
        database.run_command(command).await.during("end an earlier runner's transactions")?;
    }
    Ok(())
}

/// Takes the flow over: from here on nobody who opened it before can commit, nor can their inserters. To be called in
/// a transaction; `inserters` are the sessions that are to insert beside it.
pub(crate) async fn open(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
    first: &Checkpoint,
    inserters: &[Document],
) -> Result<(i64, Opened)> {
    let collection = database.collection::<Document>(CHECKPOINT);
    let known = collection
        .find_one_and_update(
            doc! { "_id": flow.as_str() },
            doc! { "$inc": { "fence": 1_i64 }, "$set": { "session": session.id() } },
        )
        .return_document(mongodb::options::ReturnDocument::After)
        .session(&mut *session)
        .await
        .during("take the flow over")?;
    let Some(known) = known else {
        // The time, so that nobody has it who opened a flow of this name that was forgotten since.
        let fence = DateTime::now().timestamp_millis();
        let new = doc! {
            "_id": flow.as_str(), "fence": fence, "writes": 0_i64, "session": session.id(), "source": &first.source.0,
            "position": bytes(first.position.bytes()), "replay": bytes(first.replay.bytes()),
        };
        collection.insert_one(new).session(&mut *session).await.during("store the checkpoint")?;
        let commit =
            Commit { ranges: first.ranges.clone(), exclude: first.excluded.clone(), ..Commit::default() };
        records(database, session, flow, routes, &commit).await?;
        note(database, session, flow, routes, &first.holes).await?;
        set_fences(database, session, flow, fence, inserters).await?;
        return Ok((fence, Opened::New));
    };
    let malformed = |e| Error::new(code::STATE_NEWER, "the checkpoint cannot be read").because(e);
    let position =
        |name: &str| known.get_binary_generic(name).map(|b| Position::new(b.clone())).map_err(malformed);
    let checkpoint = Checkpoint {
        source: Identity(known.get_str("source").map_err(malformed)?.to_owned()),
        position: position("position")?,
        replay: position("replay")?,
        ranges: ranges(database, session, flow, routes).await?,
        excluded: excluded(database, session, flow, routes).await?,
        holes: holes(database, session, flow, routes).await?,
    };
    let fence = known.get_i64("fence").map_err(malformed)?;
    set_fences(database, session, flow, fence, inserters).await?;
    Ok((fence, Opened::Resumed(checkpoint)))
}

/// Gives each inserter a fence of its own: one that all wrote would make their transactions wait for each other.
async fn set_fences(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    fence: i64,
    inserters: &[Document],
) -> Result<()> {
    let fences = (0..).zip(inserters).map(|(nth, inserter)| {
        let id = fence_id(flow, nth);
        (id.clone(), doc! { "_id": id, "fence": fence, "writes": 0_i64, "session": inserter })
    });
    replace(database, session, FENCES, fences.collect()).await
}

fn fence_id(flow: &FlowName, inserter: usize) -> Document {
    doc! { "flow": flow.as_str(), "inserter": i64::try_from(inserter).unwrap_or(i64::MAX) }
}

/// Checks an inserter's fence, in a way that lets nobody take the flow over before this transaction commits.
pub(crate) async fn hold_fence(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    fence: i64,
    inserter: usize,
) -> Result<()> {
    let held = database
        .collection::<Document>(FENCES)
        .update_one(
            doc! { "_id": fence_id(flow, inserter), "fence": fence },
            doc! { "$inc": { "writes": 1_i64 } },
        )
        .session(&mut *session)
        .await
        .during("look at the fence")?;
    if held.matched_count == 0 { Err(lost()) } else { Ok(()) }
}

/// Checks the fence, in a way that lets nobody take the flow over before this transaction commits, and puts what a
/// commit says into the checkpoint.
pub(crate) async fn advance(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
    fence: i64,
    commit: Option<&Commit>,
) -> Result<()> {
    let mut set = Document::new();
    for (name, position) in [
        ("position", commit.and_then(|commit| commit.position.as_ref())),
        ("replay", commit.and_then(|commit| commit.replay.as_ref())),
    ] {
        if let Some(position) = position {
            set.insert(name, bytes(position.bytes()));
        }
    }
    let mut update = doc! { "$inc": { "writes": 1_i64 } };
    if !set.is_empty() {
        update.insert("$set", set);
    }
    let done = database
        .collection::<Document>(CHECKPOINT)
        .update_one(doc! { "_id": flow.as_str(), "fence": fence }, update)
        .session(&mut *session)
        .await
        .during("advance the checkpoint")?;
    if done.matched_count == 0 {
        return Err(lost());
    }
    match commit {
        Some(commit) => records(database, session, flow, routes, commit).await,
        None => Ok(()),
    }
}

fn lost() -> Error {
    Error::new(code::LEASE_LOST, "another runner has taken this flow over, or its state was removed")
}

/// Writes what a commit says beside the position.
pub(crate) async fn records(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
    commit: &Commit,
) -> Result<()> {
    for &table in &commit.forget {
        let of_table = doc! { "_id.flow": flow.as_str(), "_id.table": name(routes, table) };
        for from in [RANGES, EXCLUDED, HOLES] {
            database
                .collection::<Document>(from)
                .delete_many(of_table.clone())
                .session(&mut *session)
                .await
                .during("forget a table's ledger")?;
        }
    }
    for some in commit.filled.chunks(1_000) {
        let deletes: Vec<Document> = some
            .iter()
            .map(|hole| doc! { "q": { "_id": hole_id(flow, routes, hole) }, "limit": 1 })
            .collect();
        run(database, session, doc! { "delete": HOLES, "deletes": deletes }).await?;
    }
    let key = |key: &Option<Key>| key.as_ref().map_or(Bson::Null, |key| bytes(&key.0));
    let ranges = commit.ranges.iter().map(|range| {
        let id = doc! {
            "flow": flow.as_str(), "table": name(routes, range.table), "range": i64::from(range.range),
        };
        let held = doc! {
            "_id": id.clone(), "after": key(&range.rest.after), "upto": key(&range.rest.upto),
            "rows": i64::try_from(range.rows).unwrap_or(i64::MAX), "done": range.done,
        };
        (id, held)
    });
    replace(database, session, RANGES, ranges.collect()).await?;
    let excluded = commit.exclude.iter().map(|(table, why)| {
        let id = doc! { "flow": flow.as_str(), "table": name(routes, *table) };
        (id.clone(), doc! { "_id": id, "reason": why.to_string() })
    });
    replace(database, session, EXCLUDED, excluded.collect()).await
}

/// Puts records in place, a thousand in one command.
pub(crate) async fn replace(
    database: &Database,
    session: &mut ClientSession,
    collection: &str,
    records: Vec<(Document, Document)>,
) -> Result<()> {
    for some in records.chunks(1_000) {
        let updates: Vec<Document> =
            some.iter().map(|(id, held)| doc! { "q": { "_id": id }, "u": held, "upsert": true }).collect();
        run(database, session, doc! { "update": collection, "updates": updates }).await?;
    }
    Ok(())
}

pub(crate) async fn run(database: &Database, session: &mut ClientSession, command: Document) -> Result<()> {
    let answer = database.run_command(command).session(&mut *session).await.during("write the ledger")?;
    from_answer(&answer, "write the ledger").map_or(Ok(()), Err)
}

/// Notes holes, so that every checkpoint says them until they are filled.
pub(crate) async fn note(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
    holes: &[(usize, Key)],
) -> Result<()> {
    let notes = holes.iter().map(|hole| {
        let id = hole_id(flow, routes, hole);
        (id.clone(), doc! { "_id": id })
    });
    replace(database, session, HOLES, notes.collect()).await
}

fn hole_id(flow: &FlowName, routes: &[Route], (table, key): &(usize, Key)) -> Document {
    doc! { "flow": flow.as_str(), "table": name(routes, *table), "key": bytes(&key.0) }
}

fn bytes(bytes: &[u8]) -> Bson {
    Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() })
}

/// A table of a flow is known by its name in the source: its place may be another one in the next run.
pub(crate) fn name(routes: &[Route], table: usize) -> String {
    routes.get(table).map(|route| route.shape.table.name.to_string()).unwrap_or_default()
}

pub(crate) fn place(routes: &[Route], id: &Document) -> Option<usize> {
    let table = id.get_str("table").ok()?;
    routes.iter().position(|route| route.shape.table.name.to_string() == table)
}

pub(crate) async fn of_flow(
    database: &Database,
    session: &mut ClientSession,
    collection: &str,
    flow: &FlowName,
) -> Result<Vec<Document>> {
    let mut cursor = database
        .collection::<Document>(collection)
        .find(doc! { "_id.flow": flow.as_str() })
        .sort(doc! { "_id": 1 })
        .session(&mut *session)
        .await
        .during("read the ledger")?;
    cursor.stream(session).try_collect().await.during("read the ledger")
}

async fn ranges(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<RangeProgress>> {
    let mut found = Vec::new();
    for one in of_flow(database, session, RANGES, flow).await? {
        let Some((id, table)) = one.get_document("_id").ok().and_then(|id| Some((id, place(routes, id)?)))
        else {
            continue;
        };
        let key = |name: &str| -> Result<Option<Key>> {
            let bytes = one.get_binary_generic(name).ok();
            bytes.map(|bytes| Row::parse(bytes).map(|row| Key(row.frame().into()))).transpose()
        };
        found.push(RangeProgress {
            table,
            range: u32::try_from(id.get_i64("range").unwrap_or(0)).unwrap_or(u32::MAX),
            rest: KeyRange { after: key("after")?, upto: key("upto")? },
            rows: u64::try_from(one.get_i64("rows").unwrap_or(0)).unwrap_or(0),
            done: one.get_bool("done").unwrap_or(false),
        });
    }
    Ok(found)
}

async fn excluded(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<(usize, Exclusion)>> {
    let found = of_flow(database, session, EXCLUDED, flow).await?;
    let parts = found.iter().filter_map(|one| {
        let table = place(routes, one.get_document("_id").ok()?)?;
        Some((table, Exclusion::from(one.get_str("reason").unwrap_or_default().to_owned())))
    });
    Ok(parts.collect())
}

async fn holes(
    database: &Database,
    session: &mut ClientSession,
    flow: &FlowName,
    routes: &[Route],
) -> Result<Vec<(usize, Key)>> {
    let mut found = Vec::new();
    for one in of_flow(database, session, HOLES, flow).await? {
        let Ok(id) = one.get_document("_id") else { continue };
        if let (Some(table), Ok(key)) = (place(routes, id), id.get_binary_generic("key")) {
            found.push((table, Key(Row::parse(key)?.frame().into())));
        }
    }
    Ok(found)
}
