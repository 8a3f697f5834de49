//! Columns made of documents: a mapping that the program infers, and that it follows as it is.

use std::path::{Path, PathBuf};

use mongodb::Client;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, Uuid, doc, oid::ObjectId};
use rstest::rstest;

use crate::values::query;
use crate::{Outcome, shop, sqlite_rows, tidegate};

/// A name that breaks out of quotes, comments and lines wherever it is not escaped.
const HOSTILE: &str = "q\"'\\\n[[map]] # }\u{7f}";

/// The documents of the sample: all types, fields that are missing or null in some, and hostile names.
fn documents() -> Vec<Document> {
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().unwrap());
    let mut first = doc! {
        "_id": 1, "total": decimal("10.50"), "count": 1_i32, "big": 1_i32, "half": 0.5, "paid": true,
        "at": DateTime::from_millis(1_709_251_199_001), "ref": Uuid::from_bytes([7; 16]),
        "body": Binary { subtype: BinarySubtype::Generic, bytes: b"ab".to_vec() },
        "owner": ObjectId::from_bytes([10; 12]), "note": "né", "Note": "upper", "none": Bson::Null,
        "deep": { "b": [1_i32, decimal("1E+3"), f64::NAN], "a": { "at": DateTime::from_millis(-1) } },
        "tags": ["x", "y"], "mixed": 1_i32, "odd name": "o", "dot.ted": 2_i32, "in": true,
        "document": "mine", "": "empty", "$cash": "c",
    };
    first.insert(HOSTILE, "h");
    let second = doc! {
        "_id": 2, "total": 3_i32, "count": -5_i32, "big": 1_i64 << 40, "half": 2_i32, "paid": false,
        "at": DateTime::from_millis(0), "note": Bson::Null, "deep": {}, "mixed": "one", "odd name": "p",
    };
    vec![first, second]
}

/// The values of a column, by document; `-` is null.
type Values = [&'static str; 2];

/// What the columns have to be: column, its values in PostgreSQL, and in SQLite where those differ.
const COLUMNS: &[(&str, Values, Option<Values>)] = &[
    ("total", ["10.50", "3"], None),
    ("count", ["1", "-5"], None),
    ("big", ["1", "1099511627776"], None),
    ("half", ["0.5", "2"], Some(["0.5", "2.0"])),
    ("paid", ["true", "false"], Some(["1", "0"])),
    (
        "at",
        ["2024-02-29 23:59:59.001+00", "1970-01-01 00:00:00+00"],
        Some(["2024-02-29 23:59:59.001000Z", "1970-01-01 00:00:00.000000Z"]),
    ),
    ("ref", ["07070707-0707-0707-0707-070707070707", "-"], None),
    ("body", ["\\x6162", "-"], Some(["ab", "-"])),
    ("owner", ["0a0a0a0a0a0a0a0a0a0a0a0a", "-"], None),
    ("Note", ["upper", "-"], None),
    ("note_2", ["né", "-"], None),
    ("none", ["-", "-"], None),
    ("deep", [r#"{"a":{"at":"1969-12-31 23:59:59.999000Z"},"b":[1,"1000","NaN"]}"#, "{}"], None),
    ("tags", [r#"["x","y"]"#, "-"], None),
    ("mixed", ["1", r#""one""#], None),
    ("odd name", ["o", "p"], None),
    ("dot.ted", ["2", "-"], None),
    ("in", ["true", "-"], Some(["1", "-"])),
    ("document_2", ["mine", "-"], None),
    ("field", ["empty", "-"], None),
    ("$cash", ["c", "-"], None),
    (HOSTILE, ["h", "-"], None),
];

fn sql(column: &str) -> String {
    let name = column.replace('"', "\"\"");
    format!("SELECT coalesce(CAST(\"{name}\" AS text), '-') FROM orders ORDER BY \"_id\"")
}

/// A configuration of these ends with the mapping that the program infers for them.
fn inferred(folder: &Path, from: &str, to: &str) -> (PathBuf, String) {
    let mapping = tidegate(&["plan", "--infer", "100", "--from", from]).ended(0).out;
    let file = folder.join("shop.toml");
    let ends = format!("[source]\nurl = \"{from}\"\n[target]\nurl = \"{to}\"\n\n");
    std::fs::write(&file, ends + &mapping).unwrap();
    (file, mapping)
}

fn run(file: &Path) -> Outcome {
    tidegate(&["-c", file.to_str().unwrap(), "migrate", "run", "--until", "verified"])
}

/// Infers, runs, and looks at the columns; then documents come that do not fit what was inferred.
async fn infer_and_run(from: &str, to: &str, is_sqlite: bool, rows: impl Fn(&str) -> Vec<String> + Copy) {
    let database = Client::with_uri_str(from).await.unwrap().default_database().unwrap();
    let orders = database.collection::<Document>("orders");
    orders.insert_many(documents()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, mapping) = tokio::task::block_in_place(|| {
        let (file, mapping) = inferred(folder.path(), from, to);
        tidegate(&["-c", file.to_str().unwrap(), "plan"]).ended(0);
        run(&file).ended(0);
        (file, mapping)
    });
    for line in [
        "# 2 documents were read, of about 2.",
        "count = { type = \"int32\", value = 'has(document.count) ? document.count : null' }",
        "big = { type = \"int64\", value = 'has(document.big) ? document.big : null' } # 1 int, 1 long",
        "half = { type = \"float64\", value = 'has(document.half) ? document.half : null' } # 1 double, 1 int",
        "owner = { type = \"text\", value = 'has(document.owner) ? document.owner : null' } # 1 missing, 1 objectId",
        "mixed = { type = \"json\", value = 'has(document.mixed) ? document.mixed : null' } # mixed: 1 int, 1 string",
        "\"odd name\" = { type = \"text\", value = '\"odd name\" in document ? document[\"odd name\"] : null' }",
    ] {
        assert!(mapping.lines().any(|found| found == line), "{line:?} is not in: {mapping}");
    }
    tokio::task::block_in_place(|| {
        for (column, values, in_sqlite) in COLUMNS {
            let expected = if is_sqlite { in_sqlite.unwrap_or(*values) } else { *values };
            assert_eq!(rows(&sql(column)), expected, "{column}");
        }
        let whole = rows(&sql("document")).remove(0);
        assert!(whole.contains(r#""total":{"$numberDecimal":"10.50"}"#), "{whole}");
        assert!(whole.contains(r#""$cash":"c""#), "{whole}");
    });

    // A field without a column stays in the document.
    let mut third = documents().remove(1);
    // So it is with one that lacks what every sampled document had.
    third.remove("count");
    third.extend(doc! { "_id": 3, "later": 9_i32 });
    orders.insert_one(&third).await.unwrap();
    tokio::task::block_in_place(|| {
        run(&file).ended(0);
        assert!(rows(&sql("document")).remove(2).contains(r#""later":{"$numberInt":"9"}"#));
        assert_eq!(rows(&sql("count")), ["1", "-5", "-"]);
    });

    // A type that no sampled document had stops the table, until the mapping says what becomes of it.
    third.extend(doc! { "_id": 4, "note": 7_i32 });
    orders.insert_one(&third).await.unwrap();
    tokio::task::block_in_place(|| {
        let stopped = "TG0057 transform-failed: table orders stopped: ";
        let found = "the expression of note_2 answers int (expression: ";
        // A comparison would meet it too, and perhaps first.
        let words = ["-c", file.to_str().unwrap(), "migrate", "run", "--until", "caught-up"];
        tidegate(&words).failed(1, stopped, &[found, "column: note_2, table: orders, key: _id=4)"]);
        assert_eq!(rows(&sql("note_2")), ["né", "-", "-"], "it is not there with a null");
        let text = std::fs::read_to_string(&file).unwrap();
        let corrected = "(type(document.note) == int ? string(document.note) : document.note) : null'";
        std::fs::write(&file, text.replace("document.note : null'", corrected)).unwrap();
        let words = ["-c", file.to_str().unwrap(), "migrate", "recopy", "--table", "orders"];
        tidegate(&words).ended(0);
        run(&file).ended(0);
        assert_eq!(rows(&sql("note_2")), ["né", "-", "-", "7"]);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_become_columns_in_postgres() {
    let Some(source) = tidegate_services::mongodb::shared().await else { return };
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let to = server.create_database("infer").await.unwrap();
    let in_utc = |sql: &str| query(&to, &format!("SET timezone = 'UTC'; {sql}"));
    infer_and_run(&source.database("infer"), &to, false, in_utc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_become_columns_in_sqlite() {
    let Some(source) = tidegate_services::mongodb::shared().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.db");
    let to = format!("sqlite:{}", file.display());
    let rows =
        |sql: &str| std::thread::scope(|scope| scope.spawn(|| sqlite_rows(&file, sql)).join().unwrap());
    infer_and_run(&source.database("infer"), &to, true, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_sampled_all_over_a_collection_and_shown_as_json() {
    let Some(source) = tidegate_services::mongodb::shared().await else { return };
    let from = source.database("infer");
    let database = Client::with_uri_str(&from).await.unwrap().default_database().unwrap();
    let items = database.collection::<Document>("it.ems");
    // What only the second half has is not seen by who reads from the start.
    let document = |n: i32| {
        if n < 500 {
            doc! { "_id": n }
        } else {
            doc! { "_id": n, "late": "x" }
        }
    };
    items.insert_many((0..1_000).map(document)).await.unwrap();
    database.create_collection("empty").await.unwrap();
    let words = ["--json", "plan", "--infer", "100", "--from", &from];
    let found = tokio::task::block_in_place(|| tidegate(&words).ended(0).json());
    assert_eq!(found["sampled"]["it.ems"]["documents"], 100);
    assert_eq!(found["sampled"]["empty"]["documents"], 0);
    let seen = &found["sampled"]["it.ems"]["seen"]["late"];
    assert_eq!(seen["string"].as_u64().unwrap() + seen["missing"].as_u64().unwrap(), 100);
    let value = "has(document.late) ? document.late : null";
    let map = serde_json::json!([{"table": "it.ems", "compute": {"late": {"type": "text", "value": value}}}]);
    assert_eq!(found["map"], map);

    let missing = ["plan", "--infer", "1", "--from", &from, "--table", "item"];
    let answer = tokio::task::block_in_place(|| tidegate(&missing));
    answer.failed(3, "TG0020 table-missing: there is no collection item", &[]);
}

/// A mapping by hand: documents filtered, fields of sub-documents and lists, and the document itself left behind.
#[tokio::test(flavor = "multi_thread")]
async fn documents_are_filtered_and_turned() {
    let Some(source) = tidegate_services::mongodb::shared().await else { return };
    let from = source.database("infer");
    let database = Client::with_uri_str(&from).await.unwrap().default_database().unwrap();
    let orders = database.collection::<Document>("orders");
    let order = |id: i32, day: i64| {
        let at = DateTime::from_millis(day * 86_400_000);
        doc! { "_id": { "shop": 1_i32, "id": id }, "at": at, "ship to": { "city": "Brno" }, "tags": ["a", "rush"] }
    };
    orders.insert_many([order(1, 10), order(2, 20_000)]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (new, file) = (folder.path().join("new.db"), folder.path().join("map.toml"));
    let mapping = r#"[[map]]
        table = "orders"
        filter = 'document.at > timestamp("2020-01-01T00:00:00Z")'
        drop = ["document"]
        [map.compute]
        city = { type = "text", value = 'document["ship to"].city' }
        number = { type = "int64", value = 'row._id.shop * 100 + document._id.id' }
        rush = { type = "bool", value = 'document.tags.exists(tag, tag == "rush")' }
        year = { type = "int32", value = 'row.document.at.getFullYear()' }"#;
    std::fs::write(&file, mapping).unwrap();
    let to = format!("sqlite:{}", new.display());
    tokio::task::block_in_place(|| {
        let words = ["migrate", "run", "--until", "verified", "--from", &from, "--to", &to, "--transform"];
        tidegate(&[&words[..], &[file.to_str().unwrap()]].concat()).ended(0);
    });
    let sql = "SELECT city || ' ' || number || ' ' || rush || ' ' || year FROM orders";
    let rows = std::thread::scope(|scope| scope.spawn(|| sqlite_rows(&new, sql)).join().unwrap());
    assert_eq!(rows, ["Brno 102 1 2024"]);
}

#[rstest]
#[case::none("0")]
#[case::negative("-1")]
#[case::word("some")]
fn a_number_of_documents_that_cannot_be_read(#[case] number: &str) {
    let flag = format!("--infer={number}");
    let answer = tidegate(&["plan", &flag, "--from", "mongodb://h/d"]).ended(2);
    let text = format!("invalid value '{number}' for '--infer <N>'");
    assert!(answer.err.contains(&text), "{}", answer.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_tables_has_nothing_to_infer() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let postgres = server.create_database("infer").await.unwrap();
    crate::pairs::psql(&postgres, "CREATE TABLE orders (id int PRIMARY KEY)");
    let empty = server.create_database("infer").await.unwrap();
    let shop = || shop("CREATE TABLE orders (id INTEGER PRIMARY KEY)");
    let (_folder, sqlite, _) = std::thread::spawn(shop).join().unwrap();
    tokio::task::block_in_place(|| {
        for (from, what) in [
            (&postgres, "public.orders has columns of its own"),
            (&sqlite, "orders has columns of its own"),
            (&empty, "there are none"),
        ] {
            let error = format!("TG0001 config-invalid: --infer is for documents, and {what}");
            tidegate(&["plan", "--infer", "10", "--from", from]).failed(2, &error, &["source: "]);
        }
    });
}

/// The same expressions by hand, on a table with columns.
#[rstest]
#[case::no_document(
    "document.total",
    "an expression uses document, which a table with columns does not have"
)]
#[case::no_variable("documents.total", "uses documents, which is not there")]
fn a_mapping_of_documents_does_not_fit_a_table(#[case] value: &str, #[case] error: &str) {
    let (folder, from, to) = shop("CREATE TABLE orders (id INTEGER PRIMARY KEY)");
    let file = folder.path().join("map.toml");
    let compute = format!("x = {{ type = \"text\", value = '{value}' }}");
    std::fs::write(&file, format!("[[map]]\ntable = \"orders\"\n[map.compute]\n{compute}\n")).unwrap();
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--transform", file.to_str().unwrap()];
    let answer = tidegate(&words);
    assert!(answer.status == 2 || answer.status == 3, "{answer:?}");
    assert!(answer.err.contains("TG0003 mapping-invalid") && answer.err.contains(error), "{}", answer.err);
}
