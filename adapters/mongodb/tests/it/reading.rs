//! Chunks, and the stream of changes.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Crawler, KeyRange, Limit, Selection};
use tidegate_core::{Changes, Op, Position, Rows, Shape, Table};

use crate::place::{Place, flow};

async fn described(place: &Place, name: &str) -> Arc<Table> {
    let catalog = place.store.catalog().await.unwrap();
    let (tables, obstacles) = catalog.describe(&Selection::All).await.unwrap();
    assert!(obstacles.is_empty(), "{obstacles:?}");
    Arc::new(tables.into_iter().find(|table| table.name.name == name).unwrap())
}

/// A document a key of every type that an index brackets, some of them equal to none but near.
fn mixed() -> Vec<Bson> {
    let mut ids = vec![
        Bson::MinKey,
        Bson::Null,
        Bson::Boolean(false),
        Bson::Boolean(true),
        Bson::MaxKey,
        Bson::Double(1.5),
        Bson::Decimal128("2.25".parse().unwrap()),
        Bson::DateTime(mongodb::bson::DateTime::from_millis(5)),
        Bson::Document(doc! { "a": 1 }),
        Bson::Document(doc! {}),
        Bson::Binary(mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Uuid,
            bytes: vec![3; 16],
        }),
    ];
    for n in 0..40 {
        ids.push(Bson::Int32(n * 10));
        ids.push(Bson::Int64(i64::from(n) * 10 + 1));
        ids.push(Bson::String(format!("s{n:02}")));
        ids.push(Bson::ObjectId(mongodb::bson::oid::ObjectId::from_bytes([u8::try_from(n).unwrap(); 12])));
    }
    ids
}

async fn crawl(crawler: &mut dyn Crawler, table: &Table, range: KeyRange, rows: usize) -> Vec<Vec<u8>> {
    crawl_by(crawler, table, range, Limit::rows(rows)).await
}

async fn crawl_by(crawler: &mut dyn Crawler, table: &Table, range: KeyRange, limit: Limit) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = range;
    loop {
        let mut out = Rows::new();
        let chunk = crawler.read(table, &rest, limit, &mut out).await.unwrap();
        assert!(limit.bytes > 1 || out.len() < 2, "a row that reaches the limit ends its chunk");
        found.extend(out.iter().map(|row| row.frame().to_vec()));
        match chunk.next {
            Some(next) => rest.after = Some(next),
            None => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_is_read_once_whatever_its_type_and_however_the_table_is_cut() {
    let Some(place) = Place::new("crawling").await else { return };
    let items = place.database.collection::<Document>("items");
    items.insert_many(mixed().into_iter().map(|id| doc! { "_id": id, "v": 1 })).await.unwrap();
    let table = described(&place, "items").await;
    let mut crawler = place.store.crawler().await.unwrap();
    let whole = crawl(crawler.as_mut(), &table, KeyRange::default(), 1_000).await;
    assert_eq!(whole.len(), mixed().len());
    for (parts, rows) in [(1, 1), (1, 7), (4, 3), (16, 5), (7, 1_000)] {
        let ranges = crawler.split(&table, parts).await.unwrap();
        assert!(!ranges.is_empty() && ranges.len() <= parts);
        let mut found = Vec::new();
        for range in ranges {
            found.extend(crawl(crawler.as_mut(), &table, range, rows).await);
        }
        assert!(found == whole, "{parts} parts, {rows} rows: {} of {}", found.len(), whole.len());
    }
    // Without an upper bound, from any key on: the last key of all is read too.
    for limit in [Limit::rows(1), Limit::rows(7), Limit { bytes: 1, ..Limit::rows(1_000) }] {
        let found = crawl_by(crawler.as_mut(), &table, KeyRange::default(), limit).await;
        assert!(found == whole, "{limit:?}: {} of {}", found.len(), whole.len());
    }
    // The bound is frozen: what comes behind it is not read.
    items.delete_one(doc! { "_id": Bson::MaxKey }).await.unwrap();
    let ranges = crawler.split(&table, 1).await.unwrap();
    items.insert_one(doc! { "_id": Bson::MaxKey }).await.unwrap();
    let found = crawl(crawler.as_mut(), &table, ranges[0].clone(), 50).await;
    assert_eq!(found.len(), mixed().len() - 1);
    // Keys of a fetch that are not there are left out.
    let shape =
        Shape { table: Arc::clone(&table), codec: place.store.catalog().await.unwrap().codec(&table) };
    let keys: Vec<_> =
        whole.iter().map(|frame| shape.cut_key(tidegate_core::Row::parse(frame).unwrap())).collect();
    items.delete_many(doc! { "_id": { "$in": [Bson::Null, Bson::Int32(10)] } }).await.unwrap();
    let mut out = Rows::new();
    crawler.fetch(&table, &keys, &mut out).await.unwrap();
    assert_eq!(out.len(), keys.len() - 2);
    // Another collection of the same name is not the one that was described.
    items.drop().await.unwrap();
    items.insert_one(doc! { "_id": 1 }).await.unwrap();
    let error =
        crawler.read(&table, &KeyRange::default(), Limit::rows(5), &mut Rows::new()).await.unwrap_err();
    assert_eq!(error.code(), code::SCHEMA_CHANGED, "{error:?}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_chunk_takes_several_answers() {
    let Some(place) = Place::new("large").await else { return };
    let items = place.database.collection::<Document>("items");
    for n in 0..10 {
        items.insert_one(doc! { "_id": n, "v": "x".repeat(5 << 20) }).await.unwrap();
    }
    let table = described(&place, "items").await;
    let mut crawler = place.store.crawler().await.unwrap();
    assert_eq!(crawl(crawler.as_mut(), &table, KeyRange::default(), 100).await.len(), 10);
    place.end().await;
}

/// Reads until so many transactions have come.
async fn gather(feed: &mut dyn ChangeFeed, count: usize) -> Changes {
    let mut changes = Changes::new();
    let start = tokio::time::Instant::now();
    while changes.transactions().len() < count {
        assert!(start.elapsed() < Duration::from_secs(20), "{changes:?}");
        feed.next(None, &mut changes).await.unwrap();
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_come_in_order_and_again_from_any_position() {
    let Some(place) = Place::new("feeding").await else { return };
    let items = place.database.collection::<Document>("items");
    items.insert_one(doc! { "_id": 0 }).await.unwrap();
    let table = described(&place, "items").await;
    let tables = [Arc::clone(&table)];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let start = catalog.capture(&flow(), &tables).await.unwrap();
    let open =
        async |from: &Position| place.store.change_feed(&flow(), &tables, &source, from).await.unwrap();

    items.insert_one(doc! { "_id": 1, "v": 1 }).await.unwrap();
    place.database.collection("unknown").insert_one(doc! { "_id": 1 }).await.unwrap();
    items.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 2 } }).await.unwrap();
    let mut session = place.database.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    items.insert_one(doc! { "_id": 2 }).session(&mut session).await.unwrap();
    items.insert_one(doc! { "_id": 3 }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
    session.start_transaction().await.unwrap();
    items.insert_one(doc! { "_id": 4 }).session(&mut session).await.unwrap();
    session.abort_transaction().await.unwrap();
    items.delete_one(doc! { "_id": 0 }).await.unwrap();

    let mut feed = open(&start).await;
    let changes = gather(feed.as_mut(), 4).await;
    let ops = |changes: &Changes| -> Vec<Vec<Op>> {
        changes.transactions().iter().map(|one| changes.of(one).map(|change| change.op).collect()).collect()
    };
    let all = [vec![Op::Insert], vec![Op::Update], vec![Op::Insert, Op::Insert], vec![Op::Delete]];
    assert_eq!(ops(&changes), all);
    let marks: Vec<_> = changes.transactions().iter().map(|one| one.mark).collect();
    assert!(marks.is_sorted() && marks[0] < marks[1]);
    for (at, one) in changes.transactions().iter().enumerate().take(3) {
        let mut again = open(&one.position).await;
        assert_eq!(ops(&gather(again.as_mut(), 3 - at).await), all[at + 1..]);
    }

    // The instant of a read is passed although nobody writes.
    let mut crawler = place.store.crawler().await.unwrap();
    let as_of = crawler.as_of().await.unwrap();
    assert!(marks.iter().all(|mark| as_of.shows(*mark)));
    let begun = tokio::time::Instant::now();
    let mut none = Changes::new();
    while feed.next(Some(&as_of.barrier), &mut none).await.unwrap().position < as_of.barrier {
        assert!(begun.elapsed() < Duration::from_secs(5), "the feed stands still");
    }
    assert_eq!(none.count(), 0);

    items.drop().await.unwrap();
    let error = loop {
        match feed.next(None, &mut none).await {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), code::SCHEMA_CHANGED);
    catalog.clean(&flow()).await.unwrap();
    catalog.clean(&flow()).await.unwrap();
    place.end().await;
}

/// Found by trying: a table that was copied anew met the end of the collection that its own had replaced, and stopped again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_the_name_before_has_its_own_story() {
    let Some(place) = Place::new("stories").await else { return };
    let items = place.database.collection::<Document>("items");
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let other = async |id: i32| {
        let other = place.database.collection::<Document>("other");
        other.insert_one(doc! { "_id": id }).await.unwrap();
    };
    let rename = async || {
        let full = |name: &str| format!("{}.{name}", place.database.name());
        let rename = doc! { "renameCollection": full("other"), "to": full("items"), "dropTarget": true };
        place.database.client().database("admin").run_command(rename).await.unwrap();
    };
    items.insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut generations = vec![described(&place, "items").await];
    let start = catalog.capture(&flow(), &generations).await.unwrap();
    items.insert_one(doc! { "_id": 1 }).await.unwrap();
    // Each way in which another collection gets the name.
    for way in 2..6 {
        match way {
            2 => {
                let stages = [doc! { "$match": { "_id": 0 } }, doc! { "$out": "items" }];
                items.aggregate(stages).await.unwrap();
            }
            3 => {
                other(10).await;
                rename().await;
            }
            4 => items.drop().await.unwrap(),
            _ => {
                items.drop().await.unwrap();
                other(11).await;
                rename().await;
            }
        }
        items.insert_one(doc! { "_id": way }).await.unwrap();
        generations.push(described(&place, "items").await);
    }
    for (at, table) in generations.iter().enumerate() {
        let tables = [Arc::clone(table)];
        let mut feed = place.store.change_feed(&flow(), &tables, &source, &start).await.unwrap();
        let barrier = place.store.crawler().await.unwrap().as_of().await.unwrap().barrier;
        let (begun, mut changes) = (tokio::time::Instant::now(), Changes::new());
        let end = loop {
            match feed.next(Some(&barrier), &mut changes).await {
                Ok(progress) if progress.position >= barrier => break None,
                Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20)),
                Err(error) => break Some(error.code()),
            }
        };
        let is_last = at + 1 == generations.len();
        assert_eq!(end, (!is_last).then_some(code::SCHEMA_CHANGED), "{at}");
        let shape = Shape { table: Arc::clone(table), codec: catalog.codec(table) };
        let keys = (0..changes.count()).filter_map(|at| Some(shape.show_key(changes.change(at).row?)));
        let keys: Vec<_> = keys.collect();
        // What comes with the end may not be delivered any more.
        assert!(keys == [format!("_id={}", at + 1)] || !is_last && keys.is_empty(), "{at}: {keys:?}");
        let mut crawler = place.store.crawler().await.unwrap();
        let read = crawler.read(table, &KeyRange::default(), Limit::rows(5), &mut Rows::new()).await;
        assert_eq!(read.err().map(|error| error.code()), (!is_last).then_some(code::SCHEMA_CHANGED));
    }
    place.end().await;
}

/// Found by trying: a place at a change of a number that is no small integer was not known to the server again, and a
/// change of a large value came with the value twice, which is more than the server sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_behind_any_change() {
    let Some(place) = Place::new("going_on").await else { return };
    let items = place.database.collection::<Document>("items");
    let tenth = || Bson::Decimal128("0.1".parse().unwrap());
    let large = |with: &str| with.repeat(9 << 20);
    let ids = [
        Bson::Int32(1),
        Bson::Int64(1 << 40),
        Bson::Double(2.5),
        Bson::Double(-0.0),
        tenth(),
        Bson::Document(doc! { "a": 2.5, "b": tenth() }),
        Bson::String("s".to_owned()),
    ];
    for id in &ids {
        items.insert_one(doc! { "_id": id, "n": 0, "v": large("a") }).await.unwrap();
    }
    let tables = [described(&place, "items").await];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let mut from = catalog.capture(&flow(), &tables).await.unwrap();
    for id in &ids {
        let change = doc! { "$set": { "n": 1, "v": large("b") } };
        items.update_one(doc! { "_id": id }, change).await.unwrap();
        let mut feed = place.store.change_feed(&flow(), &tables, &source, &from).await.unwrap();
        let changes = gather(feed.as_mut(), 1).await;
        assert_eq!(changes.count(), 1, "{id}");
        from = changes.transactions()[0].position.clone();
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_loses_no_change() {
    let Some(place) = Place::new("dropping").await else { return };
    let items = place.database.collection::<Document>("items");
    items.insert_one(doc! { "_id": -1 }).await.unwrap();
    let tables = [described(&place, "items").await];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let start = catalog.capture(&flow(), &tables).await.unwrap();
    let mut feed = place.store.change_feed(&flow(), &tables, &source, &start).await.unwrap();
    let writing = async {
        for n in 0..300 {
            items.insert_one(doc! { "_id": n }).await.unwrap();
        }
    };
    let reading = async {
        let (mut seen, mut turn) = (0, 0);
        while seen < 300 {
            turn += 1;
            assert!(turn < 60_000, "only {seen} changes came");
            let mut changes = Changes::new();
            let short = Duration::from_micros(turn % 40 * 100);
            if let Ok(progress) = tokio::time::timeout(short, feed.next(None, &mut changes)).await {
                progress.unwrap();
                seen += changes.count();
            }
        }
        seen
    };
    let (seen, ()) = tokio::join!(reading, writing);
    assert_eq!(seen, 300);
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_comes_in_pieces() {
    let Some(place) = Place::new("pieces").await else { return };
    let items = place.database.collection::<Document>("items");
    items.insert_one(doc! { "_id": -1 }).await.unwrap();
    let tables = [described(&place, "items").await];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let start = catalog.capture(&flow(), &tables).await.unwrap();
    let mut session = place.database.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for n in 0..8 {
        let large = doc! { "_id": n, "v": "x".repeat(3 << 20) };
        items.insert_one(large).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    let mut feed = place.store.change_feed(&flow(), &tables, &source, &start).await.unwrap();
    let mut changes = Changes::new();
    while changes.transactions().last().is_none_or(|last| !last.ends) {
        feed.next(None, &mut changes).await.unwrap();
    }
    let pieces = changes.transactions();
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.mark == pieces[0].mark));
    assert!(pieces.is_sorted_by_key(|piece| &piece.position));
    // A flow that begins at that time has none of it yet.
    assert!(pieces[0].position > Position::from_u64(pieces[0].mark));
    assert_eq!(pieces.iter().filter(|piece| piece.ends).count(), 1);
    assert_eq!(changes.count(), 8);
    place.end().await;
}

/// A log of the least size, and more changes than it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_the_log_does_not_have_any_more_is_an_error() {
    if tidegate_services::mongodb::shared().await.is_none() {
        return;
    }
    let options = tidegate_services::mongodb::Options::default().with_oplog_size_mb(5);
    let server = tidegate_services::mongodb::Server::start(options).await.unwrap();
    let place = Place::at(&server.database_url("expired")).await;
    let items = place.database.collection::<Document>("items");
    items.insert_one(doc! { "_id": 1 }).await.unwrap();
    let tables = [described(&place, "items").await];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let start = catalog.capture(&flow(), &tables).await.unwrap();
    let open = async || place.store.change_feed(&flow(), &tables, &source, &start).await;
    open().await.unwrap();
    let filler = "x".repeat(1 << 20);
    let begun = tokio::time::Instant::now();
    let error = loop {
        assert!(begun.elapsed() < Duration::from_secs(90), "the log keeps everything");
        for n in 0..20 {
            items.replace_one(doc! { "_id": n }, doc! { "v": &filler }).upsert(true).await.unwrap();
        }
        let failed = match open().await {
            Ok(mut feed) => feed.next(None, &mut Changes::new()).await.err(),
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(error.code(), code::RESUME_TOKEN_EXPIRED, "{error:?}");
    let other = tidegate_core::port::Identity("mongodb:other".to_owned());
    let error = place.store.change_feed(&flow(), &tables, &other, &start).await.err().unwrap();
    assert_eq!(error.code(), code::SOURCE_REPLACED);
}

#[tokio::test]
async fn a_set_that_was_set_back_does_not_have_the_change_where_the_flow_stands() {
    if tidegate_services::mongodb::shared().await.is_none() {
        return;
    }
    let options = tidegate_services::mongodb::Options::default();
    let server = tidegate_services::mongodb::Server::start(options).await.unwrap();
    let (data, old) = (server.data_folder(), server.data_folder().with_file_name("old"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    let place = Place::at(&server.database_url("set_back")).await;
    let items = place.database.collection::<Document>("items");
    items.insert_one(doc! { "_id": 1 }).await.unwrap();
    server.stop().await;
    copy(&data, &old);
    server.restart().await.unwrap();
    let tables = [described(&place, "items").await];
    let catalog = place.store.catalog().await.unwrap();
    let source = catalog.identity().await.unwrap();
    let start = catalog.capture(&flow(), &tables).await.unwrap();
    items.insert_one(doc! { "_id": 2 }).await.unwrap();
    let mut feed = place.store.change_feed(&flow(), &tables, &source, &start).await.unwrap();
    let mut changes = Changes::new();
    while changes.is_empty() {
        feed.next(None, &mut changes).await.unwrap();
    }
    let at = changes.transactions().last().unwrap().position.clone();
    drop(feed);
    server.stop().await;
    copy(&old, &data);
    server.restart().await.unwrap();
    items.insert_one(doc! { "_id": 3 }).await.unwrap();
    let opened = place.store.change_feed(&flow(), &tables, &source, &at).await;
    let error = match opened {
        Ok(mut feed) => loop {
            if let Err(error) = feed.next(None, &mut Changes::new()).await {
                break error;
            }
        },
        Err(error) => error,
    };
    assert_eq!(error.code(), code::SOURCE_REPLACED, "{error:?}");
}

/// Found by trying: a capped collection stopped every other one, and a time series was left out without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_named_before_anything_is_done() {
    let Some(place) = Place::new("kinds").await else { return };
    let create = async |command: Document| place.database.run_command(command).await.unwrap();
    create(doc! { "create": "log", "capped": true, "size": 10_000 }).await;
    create(doc! { "create": "heat", "timeseries": { "timeField": "at" } }).await;
    create(doc! { "create": "seen", "viewOn": "log" }).await;
    create(doc! { "create": "items" }).await;
    let catalog = place.store.catalog().await.unwrap();
    let (tables, obstacles) = catalog.describe(&Selection::All).await.unwrap();
    assert_eq!(tables.iter().map(|table| table.name.to_string()).collect::<Vec<_>>(), ["items"]);
    let said: Vec<_> = obstacles.iter().map(|obstacle| obstacle.error.message()).collect();
    assert_eq!(
        said,
        [
            "heat is a time series and has no changes of its own",
            "log is a capped collection and cannot be read at one instant"
        ]
    );
    place.end().await;
}
