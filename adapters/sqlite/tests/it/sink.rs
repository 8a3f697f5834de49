//! Writing.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_conformance::Seats;
use tidegate_core::error::code;
use tidegate_core::port::{
    Batch, Checkpoint, Commit, Exclusion, Identity, KeyRange, Opened, RangeProgress, Route, Sink, Store,
    TableBatch,
};
use tidegate_core::{Canonical, Cell, Column, Key, Position, Rows, Shape, Table, TableName, Type, Value};

use crate::file::{File, app, dump, exec, flow, name, open, route};

fn text(value: &str) -> Value<'static> {
    Value::Text(value.to_owned().into())
}

fn rows(values: &[&[Value<'static>]]) -> Rows {
    let mut rows = Rows::new();
    values.iter().for_each(|row| rows.push_values(row.iter().cloned()));
    rows
}

fn first() -> Checkpoint {
    Checkpoint::first(Identity("a".to_owned()), Position::from_u64(1))
}

fn at(position: u64) -> Commit {
    Commit { position: Some(Position::from_u64(position)), ..Commit::default() }
}

struct Target {
    file: File,
    sink: Box<dyn Sink>,
    routes: Vec<Route>,
}

impl Target {
    async fn with(schema: &str) -> Self {
        let file = File::with(schema).await;
        let routes: Vec<Route> = file.tables().await.iter().map(route).collect();
        let mut sink = file.store.sink(&flow(), &routes).await.unwrap();
        assert_eq!(sink.open(&first()).await.unwrap(), Opened::New);
        Self { file, sink, routes }
    }

    async fn upsert(&mut self, values: &[&[Value<'static>]], fresh: bool) -> tidegate_core::Result<()> {
        let part = TableBatch { upserts: rows(values), fresh, ..TableBatch::default() };
        self.sink.apply(&Batch { tables: vec![part] }, Some(&Commit::default())).await.map(drop)
    }

    async fn rows(&self, table: &str) -> Vec<String> {
        let columns: Vec<String> =
            self.file.table(table).await.columns.iter().map(|c| c.name.clone()).collect();
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        dump(&self.file.path, table, &columns, "1").await
    }
}

const T: &str = "CREATE TABLE t(k INTEGER PRIMARY KEY, u TEXT UNIQUE, v)";

#[tokio::test]
async fn deletes_come_first_then_upserts_then_updates_and_holes_are_told() {
    let mut target = Target::with(T).await;
    target
        .upsert(
            &[&[Value::Int(1), text("a"), Value::Int(10)], &[Value::Int(2), text("b"), Value::Int(20)]],
            true,
        )
        .await
        .unwrap();
    let mut updates = Rows::new();
    for key in [2, 9] {
        updates.push_with(|row| {
            row.value(&Value::Int(key));
            row.cell(Cell::Unchanged);
            row.value(&Value::Int(21));
        });
    }
    updates.push_with(|row| {
        row.value(&Value::Int(7));
        row.cell(Cell::Unchanged);
        row.cell(Cell::Unchanged);
    });
    let part = TableBatch {
        deletes: rows(&[&[Value::Int(1)], &[Value::Int(77)]]),
        upserts: rows(&[&[Value::Int(3), text("a"), Value::Null]]),
        updates,
        ..TableBatch::default()
    };
    let batch = Batch { tables: vec![part] };
    for _ in 0..2 {
        let applied = target.sink.apply(&batch, Some(&at(2))).await.unwrap();
        let holes: Vec<Key> = applied.holes.into_iter().map(|(_, key)| key).collect();
        let shape = &target.routes[0].shape;
        assert_eq!(holes.iter().map(|k| shape.show_key(k.row())).collect::<Vec<_>>(), ["k=9", "k=7"]);
        assert_eq!(target.rows("t").await, ["integer:32 text:62 integer:3231", "integer:33 text:61 null:"]);
    }
    let part = TableBatch { truncate: true, ..TableBatch::default() };
    target.sink.apply(&Batch { tables: vec![part] }, Some(&Commit::default())).await.unwrap();
    assert!(target.rows("t").await.is_empty());
}

struct Hall(File);

#[async_trait]
impl Seats for Hall {
    fn name(&self) -> TableName {
        name("seats")
    }

    fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }

    async fn put(&self, id: i64, seat: &str) {
        exec(&mut app(&self.0.path).await, &format!("INSERT INTO seats VALUES ({id}, '{seat}', 'rival')"))
            .await;
    }

    async fn remove(&self, id: i64) {
        exec(&mut app(&self.0.path).await, &format!("DELETE FROM seats WHERE id = {id}")).await;
    }

    async fn all(&self) -> Vec<String> {
        let text = "SELECT id || ' ' || seat || ' ' || note FROM seats ORDER BY id";
        sqlx::query_scalar(text).fetch_all(&mut app(&self.0.path).await).await.unwrap()
    }

    async fn drop_table(&self, name: &TableName) {
        exec(&mut app(&self.0.path).await, &format!("DROP TABLE {name}")).await;
    }
}

#[tokio::test]
async fn a_table_that_is_gone() {
    let hall = Hall(File::with("CREATE TABLE other(id INTEGER PRIMARY KEY)").await);
    tidegate_conformance::a_table_that_is_gone_is_named(&hall).await;
}

/// Found by reading: making the sink failed then, for every table, whether or not this one took part.
#[tokio::test]
async fn a_target_that_lost_a_column_stops_that_table_alone() {
    let schema =
        "CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT); CREATE TABLE u(k INTEGER PRIMARY KEY, v TEXT)";
    let target = Target::with(schema).await;
    let mut app = app(&target.file.path).await;
    exec(&mut app, "ALTER TABLE t DROP COLUMN v").await;
    let part = |table| {
        let upserts = rows(&[&[Value::Int(1), text("a")]]);
        Batch { tables: vec![TableBatch { table, upserts, ..TableBatch::default() }] }
    };
    let why = Exclusion::Failed(target.routes[0].target_differs("v").line());
    for position in [2, 3] {
        let mut sink = target.file.store.sink(&flow(), &target.routes).await.unwrap();
        let Opened::Resumed(checkpoint) = sink.open(&first()).await.unwrap() else { panic!("it was here") };
        assert_eq!(checkpoint.excluded, [(0, why.clone())]);
        let error = sink.apply(&part(0), Some(&at(position))).await.unwrap_err();
        assert_eq!(error.code(), code::TARGET_DIFFERS);
        assert!(error.context().iter().any(|(name, of)| *name == "table" && of == "t"), "{error}");
        sink.apply(&part(1), Some(&at(position))).await.unwrap();
    }
    // Once it has the column, and was forgotten, it is written again.
    exec(&mut app, "ALTER TABLE t ADD COLUMN v TEXT").await;
    let mut sink = target.file.store.sink(&flow(), &target.routes).await.unwrap();
    sink.open(&first()).await.unwrap();
    sink.apply(&part(0), Some(&Commit { forget: vec![0], ..at(4) })).await.unwrap();
    assert_eq!(target.rows("t").await.len(), 1);
}

/// A column, an expression, and some rows of which all of the test are: each keeps out.
#[tokio::test]
async fn rows_that_are_in_each_others_way() {
    for conflict in ["", "REPLACE", "IGNORE", "ROLLBACK", "FAIL"] {
        let clause = if conflict.is_empty() { String::new() } else { format!("ON CONFLICT {conflict}") };
        let schema =
            format!("CREATE TABLE seats(id INTEGER PRIMARY KEY, seat TEXT UNIQUE {clause}, note TEXT)");
        tidegate_conformance::keeps_rivals_apart(&Hall(File::with(&schema).await)).await;
    }
    for index in ["seats(seat)", "seats(lower(seat))", "seats(seat) WHERE seat NOT NULL"] {
        let schema = format!(
            "CREATE TABLE seats(id INTEGER PRIMARY KEY, seat TEXT, note TEXT); CREATE UNIQUE INDEX one ON {index}"
        );
        tidegate_conformance::keeps_rivals_apart(&Hall(File::with(&schema).await)).await;
    }
}

#[tokio::test]
async fn many_rows_fit_whatever_their_width_and_repeat_themselves() {
    let columns: Vec<String> = (0..300).map(|at| format!("c{at}")).collect();
    let mut target =
        Target::with(&format!("CREATE TABLE t(k INTEGER PRIMARY KEY, {})", columns.join(", "))).await;
    let wide: Vec<Vec<Value<'static>>> =
        (0..259).map(|k| (0..301).map(|c| Value::Int(if c == 0 { k } else { c })).collect()).collect();
    let wide: Vec<&[Value<'static>]> = wide.iter().map(Vec::as_slice).collect();
    for fresh in [true, true, false] {
        target.upsert(&wide, fresh).await.unwrap();
        assert_eq!(dump(&target.file.path, "t", &["k", "c299"], "1").await.len(), 259);
    }
}

#[tokio::test]
async fn the_checkpoint_comes_back_whole() {
    let mut target = Target::with(T).await;
    let range = |number: u32, done: bool| RangeProgress {
        table: 0,
        range: number,
        rest: KeyRange { after: None, upto: Some(Key(rows(&[&[Value::Int(5)]]).row(0).frame().into())) },
        rows: 3,
        done,
    };
    let commit = Commit {
        position: Some(Position::from_u64(7)),
        ranges: vec![range(0, true), range(1, false)],
        exclude: vec![(0, Exclusion::Restarting)],
        ..Commit::default()
    };
    target.sink.apply(&Batch::default(), Some(&commit)).await.unwrap();
    let open = |target: &Target| {
        let (store, routes) = (Arc::clone(&target.file.store), target.routes.clone());
        async move {
            let mut sink = store.sink(&flow(), &routes).await.unwrap();
            let Opened::Resumed(checkpoint) = sink.open(&first()).await.unwrap() else { panic!("resumed") };
            (sink, checkpoint)
        }
    };
    let (mut sink, checkpoint) = open(&target).await;
    let expected = Checkpoint {
        position: Position::from_u64(7),
        ranges: vec![range(0, true), range(1, false)],
        excluded: vec![(0, Exclusion::Restarting)],
        ..first()
    };
    assert_eq!(checkpoint, expected);
    let commit = Commit {
        replay: Some(Position::from_u64(6)),
        forget: vec![0],
        ranges: vec![range(2, false)],
        ..Commit::default()
    };
    sink.apply(&Batch::default(), Some(&commit)).await.unwrap();
    let (_, checkpoint) = open(&target).await;
    assert_eq!((checkpoint.position, checkpoint.replay), (Position::from_u64(7), Position::from_u64(6)));
    assert_eq!((checkpoint.ranges, checkpoint.excluded), (vec![range(2, false)], vec![]));
}

#[tokio::test]
async fn who_opened_before_cannot_commit() {
    let mut target = Target::with(T).await;
    let mut other = target.file.store.sink(&flow(), &target.routes).await.unwrap();
    other.open(&first()).await.unwrap();
    let error = target.upsert(&[&[Value::Int(1), Value::Null, Value::Null]], true).await.unwrap_err();
    assert_eq!(error.code(), code::LEASE_LOST);
    assert!(target.rows("t").await.is_empty());
    other.apply(&Batch::default(), Some(&at(3))).await.unwrap();
}

#[tokio::test]
async fn a_batch_without_a_commit_keeps_nobody_else_from_writing() {
    let mut target = Target::with(T).await;
    let batch = |key: i64, value: Value<'static>| {
        let upserts = rows(&[&[Value::Int(key), text(&key.to_string()), value]]);
        Batch { tables: vec![TableBatch { upserts, ..TableBatch::default() }] }
    };
    target.sink.apply(&batch(1, Value::Null), None).await.unwrap();
    // Who renews the lease of a run writes to the same file.
    let state = target.file.store.state().await.unwrap();
    state.hold(&flow(), "me", std::time::Duration::from_secs(5)).await.unwrap();
    // A batch that is refused leaves what came before it in the transaction.
    let error = target.sink.apply(&batch(2, Value::Float(f64::NAN)), None).await.unwrap_err();
    assert_eq!(error.code(), code::VALUE_UNFIT);
    target.sink.apply(&batch(3, Value::Null), Some(&at(9))).await.unwrap();
    assert_eq!(target.rows("t").await.len(), 2);
    // Not even between two pieces is the fence passed over.
    let mut next = target.file.store.sink(&flow(), &target.routes).await.unwrap();
    next.open(&first()).await.unwrap();
    let error = target.sink.apply(&batch(4, Value::Null), None).await.unwrap_err();
    assert_eq!(error.code(), code::LEASE_LOST);
    target.sink.close().await.unwrap();
    let left = dump(&target.file.path, "t", &["k"], "1").await;
    assert_eq!(left, ["integer:31", "integer:33"]);
}

#[tokio::test]
async fn what_does_not_fit_is_named_and_nothing_of_the_batch_is_done() {
    let schema = "CREATE TABLE t(k INTEGER PRIMARY KEY, i INT, r REAL, x TEXT, n NOT NULL CHECK (n <> 7))";
    let full = |at: usize, value: Value<'static>| {
        let mut row = vec![Value::Int(2), Value::Int(0), Value::Float(0.5), text("x"), Value::Int(0)];
        row[at] = value;
        row
    };
    for (at, value, expected) in [
        (0, text("abc"), code::VALUE_UNFIT),
        (1, text("12"), code::VALUE_UNFIT),
        (1, Value::Float(3.0), code::VALUE_UNFIT),
        (2, Value::Float(f64::NAN), code::VALUE_UNFIT),
        (2, Value::Float(-0.0), code::VALUE_UNFIT),
        (2, Value::Int(1), code::VALUE_UNFIT),
        (3, Value::Int(1), code::VALUE_UNFIT),
        (4, Value::Null, code::CONSTRAINT_VIOLATED),
        (4, Value::Int(7), code::CONSTRAINT_VIOLATED),
    ] {
        let mut target = Target::with(schema).await;
        let good = full(0, Value::Int(1));
        let bad = full(at, value.clone());
        let error = target.upsert(&[&good, &bad], false).await.unwrap_err();
        assert_eq!(error.code(), expected, "{value:?}");
        let context: Vec<&str> = error.context().iter().map(|(name, _)| &**name).collect();
        assert!(context.contains(&"table") && context.contains(&"key"), "{error:?}");
        assert!(target.rows("t").await.is_empty());
        target.upsert(&[&good], false).await.unwrap();
    }
}

#[tokio::test]
async fn values_of_every_kind_are_held_exactly() {
    let kinds = [
        ("b", Type::Bool, Value::Bool(true), "integer:31"),
        (
            "i",
            Type::Int { bits: 64 },
            Value::Int(i64::MIN),
            "integer:2D39323233333732303336383534373735383038",
        ),
        ("f", Type::Float { bits: 64 }, Value::Float(0.1), "real:0.10000000000000001"),
        ("g", Type::Float { bits: 32 }, Value::Float32(0.1), "real:0.10000000149011612"),
        ("d", Type::Decimal { precision: None, scale: None }, Value::Decimal("1.10".into()), "text:312E3130"),
        ("t", Type::Text, text("a\0b"), "text:610062"),
        ("y", Type::Bytes, Value::Bytes((&b"\0\xff"[..]).into()), "blob:00FF"),
        (
            "u",
            Type::Uuid,
            Value::Uuid([0xab; 16]),
            "text:61626162616261622D616261622D616261622D616261622D616261626162616261626162",
        ),
        ("a", Type::Date, Value::Date(i32::MAX), "text:696E66696E697479"),
        ("j", Type::Json, Value::Json("{\"a\":1,\"a\":2}".into()), "text:7B2261223A312C2261223A327D"),
        (
            "l",
            Type::Array(Box::new(Type::Int { bits: 32 })),
            Value::Array(vec![Value::Int(1), Value::Null]),
            "text:5B312C6E756C6C5D",
        ),
        ("x", Type::Any, Value::Float(-0.0), "text:2D302E30"),
        ("w", Type::Any, Value::Text("true".into()), "text:227472756522"),
        ("z", Type::Any, Value::Bool(true), "text:74727565"),
    ];
    let file = File::with("CREATE TABLE other(id INTEGER PRIMARY KEY)").await;
    let store: Arc<dyn Store> = open(&file.folder.path().join("target.db"));
    let catalog = store.catalog().await.unwrap();
    let columns: Vec<Column> = std::iter::once(Column::new("k", Type::Int { bits: 64 }))
        .chain(kinds.iter().map(|(name, kind, ..)| Column::new(*name, kind.clone())))
        .collect();
    let source =
        Table { name: name("t"), native_id: 0, columns, key: vec![0], rows_estimated: 0, bytes_estimated: 0 };
    let fitted = source.columns.iter().map(|column| {
        let fit = catalog.fit(column, tidegate_core::Encoding::CANONICAL, &Default::default()).unwrap();
        Column { native: fit.native, kind: fit.kind, ..column.clone() }
    });
    let target = Arc::new(Table { columns: fitted.collect(), ..source.clone() });
    catalog.create(&[Arc::clone(&target)]).await.unwrap();
    let route = Route { shape: Shape { table: Arc::new(source), codec: Arc::new(Canonical) }, target };
    let mut sink = store.sink(&flow(), &[route]).await.unwrap();
    sink.open(&first()).await.unwrap();
    let row: Vec<Value<'static>> =
        std::iter::once(Value::Int(1)).chain(kinds.iter().map(|k| k.2.clone())).collect();
    let part = TableBatch { upserts: rows(&[&row]), fresh: true, ..TableBatch::default() };
    sink.apply(&Batch { tables: vec![part] }, Some(&at(2))).await.unwrap();
    let columns: Vec<&str> = kinds.iter().map(|k| k.0).collect();
    let found = dump(&file.folder.path().join("target.db"), "t", &columns, "1").await;
    let expected: Vec<&str> = kinds.iter().map(|k| k.3).collect();
    assert_eq!(found[0].split(' ').collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_busy_target_may_be_tried_again() {
    use tidegate_core::error::Verdict;
    let mut target = Target::with(T).await;
    target.file.exec("BEGIN IMMEDIATE; INSERT INTO t VALUES (1, 'a', 0)").await;
    let error = target.upsert(&[&[Value::Int(2), Value::Null, Value::Null]], true).await.unwrap_err();
    assert_eq!((error.code(), error.verdict()), (code::STORE_FAILED, Verdict::Retry));
    target.file.exec("ROLLBACK").await;
    target.upsert(&[&[Value::Int(2), Value::Null, Value::Null]], true).await.unwrap();
}
