//! Keys that are equal and not the same, and keys that look the same and are not equal.

use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, Uuid, doc};
use tidegate_services::{mongodb as documents, postgres};

use crate::pairs::{abort, psql};
use crate::values::query;
use crate::{sqlite_rows, tidegate};

const NUMBERS: &str = "CREATE TABLE numbers (k numeric PRIMARY KEY, v text);
    INSERT INTO numbers VALUES (1.1, 'a'), (3.00, 'b'), (5, 'c')";
/// Each key goes and comes again in another form.
const NUMBERS_AGAIN: &str =
    "BEGIN; DELETE FROM numbers WHERE k = 1.1; INSERT INTO numbers VALUES (1.10, 'A'); COMMIT;
    BEGIN; DELETE FROM numbers WHERE k = 3; INSERT INTO numbers VALUES (3, 'B'); COMMIT;
    UPDATE numbers SET k = 5.0, v = 'C' WHERE k = 5";
const NUMBERS_AT_END: [&str; 3] = ["1.10|A", "3|B", "5.0|C"];

fn run(name: &str, from: &str, to: &str) {
    tidegate(&["migrate", "run", "--from", from, "--to", to, "--name", name, "--until", "verified"]).ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_an_equal_one_replaces_arrives_as_it_is() {
    let Some(server) = postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("equal").await.unwrap(), server.create_database("equal").await.unwrap());
    tokio::task::block_in_place(|| {
        psql(
            &from,
            &format!(
                "{NUMBERS}; CREATE TABLE spans (k interval PRIMARY KEY); INSERT INTO spans VALUES ('1 day')"
            ),
        );
        run("equal_keys", &from, &to);
        psql(&from, NUMBERS_AGAIN);
        psql(&from, "BEGIN; DELETE FROM spans; INSERT INTO spans VALUES ('24:00:00'); COMMIT");
        run("equal_keys", &from, &to);
        assert_eq!(query(&to, "SELECT * FROM numbers ORDER BY k"), NUMBERS_AT_END);
        assert_eq!(query(&to, "SELECT * FROM spans"), ["24:00:00"]);
        abort("equal_keys", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_an_equal_one_replaces_leaves_no_other_where_they_differ() {
    let Some(server) = postgres::shared().await else { return };
    let from = server.create_database("equal").await.unwrap();
    tokio::task::block_in_place(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new.db");
        let to = format!("sqlite:{}", file.display());
        psql(&from, NUMBERS);
        run("equal_keys_as_text", &from, &to);
        psql(&from, NUMBERS_AGAIN);
        run("equal_keys_as_text", &from, &to);
        assert_eq!(sqlite_rows(&file, "SELECT k || '|' || v FROM numbers ORDER BY k"), NUMBERS_AT_END);
        abort("equal_keys_as_text", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_an_equal_one_replaces_leaves_no_other() {
    let Some(source) = documents::shared().await else { return };
    let Some(server) = postgres::shared().await else { return };
    let (from, to) = (source.database("equal"), server.create_database("equal").await.unwrap());
    let items = collection(&from).await;
    items.insert_one(doc! { "_id": 2, "v": "a" }).await.unwrap();
    tokio::task::block_in_place(|| run("equal_ids", &from, &to));
    let mut session = items.client().start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    items.delete_one(doc! { "_id": 2 }).session(&mut session).await.unwrap();
    let again = doc! { "_id": "2.0".parse::<Decimal128>().unwrap(), "v": "b" };
    items.insert_one(again).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
    tokio::task::block_in_place(|| {
        run("equal_ids", &from, &to);
        assert_eq!(query(&to, "SELECT _id FROM items"), ["{\"$decimal\":\"2.0\"}"]);
        abort("equal_ids", &from, &to);
    });
}

/// Keys of which each looks like another one when its type is taken away.
fn alike() -> Vec<Bson> {
    let digits = "6b0b767f7dd3a40291d22a73";
    let numerals = "111111111111111111111111";
    let uuid = Uuid::from_bytes([7; 16]);
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().unwrap());
    let text = |text: &str| Bson::String(text.to_owned());
    let binary = |subtype| Bson::Binary(Binary { subtype, bytes: vec![1, 2] });
    vec![
        Bson::ObjectId(ObjectId::parse_str(digits).unwrap()),
        text(digits),
        text(&format!("\"{digits}\"")),
        text(&format!("{{\"$oid\":\"{digits}\"}}")),
        text(&format!("{{\"$string\":\"{digits}\"}}")),
        Bson::ObjectId(ObjectId::parse_str(numerals).unwrap()),
        text(numerals),
        text(&format!("\"{numerals}\"")),
        uuid.into(),
        text(&uuid.to_string()),
        text(&format!("{{\"$uuid\":\"{uuid}\"}}")),
        Bson::Int32(1),
        Bson::Boolean(true),
        text("1"),
        text("true"),
        decimal("2.5"),
        text("2.5"),
        text("{\"$decimal\":\"2.5\"}"),
        Bson::Double(f64::NAN),
        text("NaN"),
        Bson::Double(-0.0),
        Bson::Boolean(false),
        text("false"),
        text("-0.0"),
        Bson::Null,
        text("null"),
        text(""),
        Bson::DateTime(DateTime::from_millis(0)),
        text("1970-01-01 00:00:00.000000Z"),
        doc! { "a": 1 }.into(),
        doc! { "a": 1_i64, "b": 1 }.into(),
        text("{\"a\":{\"$numberInt\":\"1\"}}"),
        text("{\"a\":1}"),
        Bson::MinKey,
        text("{\"$minKey\":1}"),
        binary(BinarySubtype::Generic),
        binary(BinarySubtype::Uuid),
        text("0102"),
    ]
}

async fn collection(url: &str) -> mongodb::Collection<Document> {
    let client = mongodb::Client::with_uri_str(url).await.unwrap();
    client.default_database().unwrap().collection("items")
}

/// Half of them crawled, half of them captured, some deleted.
async fn move_alike(name: &str, from: &str, to: &str) -> usize {
    let items = collection(from).await;
    let ids = alike();
    let (first, second) = ids.split_at(ids.len() / 2);
    for id in first {
        items.insert_one(doc! { "_id": id.clone() }).await.unwrap();
    }
    tokio::task::block_in_place(|| run(name, from, to));
    for id in second {
        items.insert_one(doc! { "_id": id.clone() }).await.unwrap();
    }
    items.delete_one(doc! { "_id": ids[1].clone() }).await.unwrap();
    items.update_one(doc! { "_id": ids[0].clone() }, doc! { "$set": { "v": 1 } }).await.unwrap();
    tokio::task::block_in_place(|| run(name, from, to));
    ids.len() - 1
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_different_types_stay_apart_in_postgres() {
    let Some(source) = documents::shared().await else { return };
    let Some(server) = postgres::shared().await else { return };
    let (from, to) = (source.database("alike"), server.create_database("alike").await.unwrap());
    let expected = move_alike("alike", &from, &to).await;
    tokio::task::block_in_place(|| {
        assert_eq!(query(&to, "SELECT count(*) FROM items"), [expected.to_string()]);
        abort("alike", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_different_types_stay_apart_in_sqlite() {
    let Some(source) = documents::shared().await else { return };
    let from = source.database("alike");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    let expected = move_alike("alike", &from, &to).await;
    tokio::task::block_in_place(|| {
        assert_eq!(sqlite_rows(&file, "SELECT count(*) FROM items"), [expected.to_string()]);
    });
}

/// Found by testing: a key with control characters did to the terminal what they say.
#[test]
fn control_characters_of_a_key_are_shown_and_not_obeyed() {
    let key = "a\u{1b}[31mb\u{7f}";
    let (folder, from, to) = crate::shop("CREATE TABLE t (k TEXT PRIMARY KEY NOT NULL, v TEXT)");
    let insert = "INSERT INTO t VALUES ('a' || char(27) || '[31mb' || char(127), 'x')";
    crate::sqlite(&folder.path().join("shop.db"), insert);
    let go = |words: &[&str]| crate::columns::verb("control", &from, &to, words);
    go(&["run", "--until", "verified"]).ended(0);
    crate::sqlite(&folder.path().join("new.db"), "DELETE FROM t");
    let out = go(&["verify"]).ended(4).out;
    assert!(out.contains(r"missing: t k=a\u001b[31mb\u007f"), "{out:?}");
    let report = go(&["verify", "--json"]).ended(4).json();
    assert_eq!(report["rows"][0]["key"]["k"], key);
    // And in an error.
    let err = go(&["pause", "--table", key]).ended(3).err;
    assert!(err.contains(r"a\u001b[31mb\u007f") && !err.contains('\u{1b}'), "{err:?}");
}
