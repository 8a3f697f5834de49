//! Every pair of stores on real data: moved while a writer is at work, and proved equal.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{shop, sqlite, tidegate};

/// Values that every store has an exact form for, and hostile ones among them.
pub(crate) const SQLITE: &str =
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT, size REAL, body BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
    INSERT INTO orders SELECT i, 'ordér ''' || i || '\"', i / 3.0, randomblob(i % 40) FROM n;
    INSERT INTO orders VALUES (-9223372036854775808, '', 0.5, x''), (9223372036854775807, NULL, NULL, NULL);
    CREATE TABLE lines (o TEXT NOT NULL, n INTEGER NOT NULL, x TEXT, PRIMARY KEY (o, n)) WITHOUT ROWID;
    INSERT INTO lines SELECT 'o' || (id % 50), id, note FROM orders WHERE id BETWEEN 1 AND 2000";

pub(crate) const POSTGRES: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, note text, size double precision, body bytea,
        total numeric(12,2), paid boolean, ref uuid, day date, at timestamptz, extra jsonb, tags text[]);
    INSERT INTO orders SELECT i, 'ordér ''' || i || '\"', i / 3.0, decode(md5(i::text), 'hex'), i / 7.0, i % 2 = 0,
        md5(i::text)::uuid, date '2020-01-01' + i % 1000, timestamptz '2020-01-01 00:00:00.123456+02' + i * interval '1 minute',
        jsonb_build_object('n', i, 't', 'x'), ARRAY['a', i::text, NULL] FROM generate_series(1, 3000) i;
    INSERT INTO orders (id) VALUES (-9223372036854775808), (9223372036854775807);
    CREATE TABLE lines (o text, n integer, x text, PRIMARY KEY (o, n));
    INSERT INTO lines SELECT 'O' || (id % 50), id, note FROM orders WHERE id BETWEEN 1 AND 2000";

pub(crate) const CHANGES: &str =
    "UPDATE orders SET note = 'changed' WHERE id = 5; UPDATE orders SET id = 100000 WHERE id = 6;
     DELETE FROM orders WHERE id = 7; INSERT INTO orders (id, note) VALUES (100001, 'new');
     UPDATE lines SET o = 'moved' WHERE n = 9";

fn run(name: &str, from: &str, to: &str) {
    tidegate(&["migrate", "run", "--from", from, "--to", to, "--name", name, "--until", "verified"]).ended(0);
}

/// Moves the rows, changes them, and moves the changes. Slots are known to a whole server, so names differ.
fn move_and_change(name: &str, from: &str, to: &str, change: impl Fn(&str)) {
    run(name, from, to);
    change(CHANGES);
    run(name, from, to);
}

#[test]
fn sqlite_to_sqlite_while_a_writer_is_at_work() {
    let (folder, from, to) = shop(SQLITE);
    let file = folder.path().join("shop.db");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                sqlite(&file, &format!("UPDATE orders SET note = 'n{n}' WHERE id % 100 = {}; INSERT INTO orders (id) VALUES ({})", n % 100, 10_000 + n));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let answer = tidegate(&[
            "migrate", "run", "--from", &from, "--to", &to, "--name", "pair", "--until", "verified",
        ]);
        stop.store(true, Ordering::Relaxed);
        answer.ended(0);
    });
    move_and_change("pair", &from, &to, |sql| sqlite(&file, sql));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_to_postgres() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("pair").await.unwrap(), server.create_database("pair").await.unwrap());
    psql(&from, POSTGRES);
    tokio::task::block_in_place(|| move_and_change("postgres_postgres", &from, &to, |sql| psql(&from, sql)));
    abort("postgres_postgres", &from, &to);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_to_postgres() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let to = server.create_database("pair").await.unwrap();
    tokio::task::block_in_place(|| {
        let (folder, from, _) = shop(SQLITE);
        move_and_change("pair", &from, &to, |sql| sqlite(&folder.path().join("shop.db"), sql));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_to_sqlite() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let from = server.create_database("pair").await.unwrap();
    psql(&from, POSTGRES);
    tokio::task::block_in_place(|| {
        let folder = tempfile::tempdir().unwrap();
        let to = format!("sqlite:{}", folder.path().join("new.db").display());
        move_and_change("postgres_sqlite", &from, &to, |sql| psql(&from, sql));
        abort("postgres_sqlite", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_to_mongodb() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    let to = server.database("pair");
    tokio::task::block_in_place(|| {
        let (folder, from, _) = shop(SQLITE);
        move_and_change("pair", &from, &to, |sql| sqlite(&folder.path().join("shop.db"), sql));
    });
}

/// Found by trying: a collection that a migration had made was one table where it was named and another one where it was not;
/// the second command, and every verification, refused or stopped it though nothing had changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_a_migration_made_moves_on_however_it_is_named() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    let between = server.database("pair");
    tokio::task::block_in_place(|| {
        let (folder, from, _) =
            shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')");
        run("there", &from, &between);
        let named: &[&str] = &["--table", "t"];
        for (name, first, then) in [("all", &[][..], named), ("named", named, &[])] {
            let to = format!("sqlite:{}", folder.path().join(format!("{name}.db")).display());
            let words = ["--from", &between, "--to", &to, "--name", name];
            let run = |until, tables| {
                let words = [&["migrate", "run", "--until", until], &words[..], tables].concat();
                tidegate(&words).ended(0);
            };
            run("caught-up", first);
            tidegate(&[&["migrate", "verify"], &words[..]].concat()).ended(0);
            run("verified", then);
            run("verified", first);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_to_mongodb() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let (from, to) = (server.create_database("pair").await.unwrap(), documents.database("pair"));
    psql(&from, POSTGRES);
    tokio::task::block_in_place(|| {
        let words = ["migrate", "run", "--from", &from, "--to", &to, "--name", "postgres_mongodb"];
        // Microseconds have no exact form in a document's dates.
        let refused = tidegate(&words).ended(3);
        assert!(refused.err.contains("TG0022 type-refused"), "{}", refused.err);
        assert!(refused.err.contains("--convert timestamptz=string"), "{}", refused.err);
        let words = [&words[..], &["--until", "verified", "--convert", "timestamptz=string"]].concat();
        tidegate(&words).ended(0);
        psql(&from, CHANGES);
        tidegate(&words).ended(0);
        abort("postgres_mongodb", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_to_postgres() {
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) = (documents.database("pair"), server.create_database("pair").await.unwrap());
    move_documents(&from, &to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_to_sqlite() {
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    move_documents(&documents.database("pair"), &to).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_to_mongodb() {
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    move_documents(&documents.database("pair"), &documents.database("pair")).await;
}

/// Documents of every shape, moved and changed.
async fn move_documents(from: &str, to: &str) {
    use mongodb::bson::{Bson, Decimal128, doc, oid::ObjectId};
    let client = mongodb::Client::with_uri_str(from).await.unwrap();
    let database = client.default_database().unwrap();
    let items = database.collection::<mongodb::bson::Document>("items");
    let document = |n: i32| {
        doc! {
            "_id": if n % 2 == 0 { Bson::Int32(n) } else { Bson::String(format!("key {n}")) },
            "n": n, "long": i64::from(n) << 40, "half": f64::from(n) / 3.0, "none": Bson::Null,
            "deep": { "a": [n, "é'", { "b": true }], "at": mongodb::bson::DateTime::from_millis(i64::from(n) * 86_400_000) },
            "exact": "1.10".parse::<Decimal128>().unwrap(), "id": ObjectId::from_bytes([7; 12]),
        }
    };
    items.insert_many((0..2_000).map(document)).await.unwrap();
    database.collection("more").insert_one(doc! { "_id": { "a": 1, "b": "x" }, "v": 1 }).await.unwrap();
    let go = || tokio::task::block_in_place(|| run("documents", from, to));
    go();
    items.update_one(doc! { "_id": 4 }, doc! { "$set": { "n": "changed" } }).await.unwrap();
    items.delete_many(doc! { "_id": { "$in": [6, "key 7"] } }).await.unwrap();
    items.insert_one(document(5_000)).await.unwrap();
    items.update_one(doc! { "_id": 8 }, doc! { "$unset": { "deep.a": 1 } }).await.unwrap();
    go();
}

/// Gives the slot back, so that the shared server keeps no log for it.
pub(crate) fn abort(name: &str, from: &str, to: &str) {
    tidegate(&["migrate", "abort", "--yes", "--from", from, "--to", to, "--name", name]).ended(0);
}

pub(crate) fn psql(url: &str, sql: &str) {
    let output = std::process::Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", url, "--command", sql])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Found by trying: a table from which another one inherits took that one's rows along when its own were deleted, truncated
/// or copied anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_from_which_another_inherits_is_written_alone() {
    const NAME: &str = "inherited";
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database(NAME).await.unwrap(), server.create_database(NAME).await.unwrap());
    tokio::task::block_in_place(|| {
        let tables = "CREATE TABLE par (id int PRIMARY KEY, v int); CREATE TABLE chi (PRIMARY KEY (id)) INHERITS (par)";
        psql(&from, tables);
        psql(&to, tables);
        let rows = "INSERT INTO par VALUES (1, 1), (4, 4); INSERT INTO chi VALUES (1, 2), (2, 3)";
        psql(&from, rows);
        let ends = ["--from", &from, "--to", &to, "--name", NAME];
        let go = |words: &[&str]| tidegate(&[&["migrate"], words, &ends[..]].concat());
        let verified = || go(&["run", "--until", "verified"]).ended(0);
        verified();
        go(&["recopy", "--table", "par"]).ended(0);
        verified();
        for change in ["UPDATE ONLY par SET v = 5", "DELETE FROM ONLY par WHERE id = 1", "TRUNCATE ONLY par"]
        {
            psql(&from, change);
            verified();
        }
        abort(NAME, &from, &to);
    });
}
