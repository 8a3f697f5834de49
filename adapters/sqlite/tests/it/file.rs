//! Files and the programs that use them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Row as _};
use tempfile::TempDir;
use tidegate_core::port::{Catalog, ChangeFeed, Route, Selection, Store};
use tidegate_core::{
    Canonical, Changes, Endpoint, FlowName, Op, Position, Row, Rows, Shape, Table, TableName, Value,
};

/// A folder with a source.
pub(crate) struct File {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) app: SqliteConnection,
    pub(crate) store: Arc<dyn Store>,
}

pub(crate) fn open(path: &Path) -> Arc<dyn Store> {
    tidegate_sqlite::open(&Endpoint::parse(&format!("sqlite:{}", path.display())).unwrap()).unwrap()
}

/// A connection as an application has it.
pub(crate) async fn app(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .disable_statement_logging()
        .connect()
        .await
        .unwrap()
}

pub(crate) async fn exec(app: &mut SqliteConnection, text: &str) {
    sqlx::raw_sql(AssertSqlSafe(text)).execute(app).await.unwrap_or_else(|e| panic!("{text}: {e}"));
}

/// A number that a query gives.
pub(crate) async fn ask(app: &mut SqliteConnection, text: &str) -> i64 {
    sqlx::query(AssertSqlSafe(text)).fetch_one(app).await.unwrap().get(0)
}

/// All rows of a query, each as one text that shows classes: `1|'a'|x'00'`.
pub(crate) async fn dump(path: &Path, table: &str, columns: &[&str], order: &str) -> Vec<String> {
    let mut connection = app(path).await;
    let shown: Vec<String> = columns
        .iter()
        .map(|c| format!("typeof(\"{c}\") || ':' || CASE typeof(\"{c}\") WHEN 'null' THEN '' WHEN 'real' THEN printf('%!.17g', \"{c}\") ELSE hex(\"{c}\") END"))
        .collect();
    let text = format!("SELECT {} FROM \"{table}\" ORDER BY {order}", shown.join(" || ' ' || "));
    sqlx::query_scalar(AssertSqlSafe(text.as_str())).fetch_all(&mut connection).await.unwrap()
}

impl File {
    /// A source with this schema.
    pub(crate) async fn with(schema: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("source.db");
        let mut app = app(&path).await;
        exec(&mut app, schema).await;
        let store = open(&path);
        Self { folder, path, app, store }
    }

    pub(crate) async fn exec(&mut self, text: &str) {
        exec(&mut self.app, text).await;
    }

    pub(crate) async fn catalog(&self) -> Arc<dyn Catalog> {
        self.store.catalog().await.unwrap()
    }

    pub(crate) async fn tables(&self) -> Vec<Arc<Table>> {
        let (tables, obstacles) = self.catalog().await.describe(&Selection::All).await.unwrap();
        assert!(obstacles.is_empty(), "{obstacles:?}");
        tables.into_iter().map(Arc::new).collect()
    }

    pub(crate) async fn table(&self, name: &str) -> Arc<Table> {
        self.tables().await.into_iter().find(|t| t.name.name == name).unwrap()
    }

    /// Captures everything and opens the feed.
    pub(crate) async fn feed(&self) -> Feed {
        let tables = self.tables().await;
        let catalog = self.catalog().await;
        let from = catalog.capture(&flow(), &tables).await.unwrap();
        self.feed_from(&from).await.unwrap()
    }

    pub(crate) async fn feed_from(&self, from: &Position) -> tidegate_core::Result<Feed> {
        let tables = self.tables().await;
        let identity = self.catalog().await.identity().await.unwrap();
        let feed = self.store.change_feed(&flow(), &tables, &identity, from).await?;
        Ok(Feed { feed, tables, position: from.clone() })
    }
}

pub(crate) fn flow() -> FlowName {
    FlowName::new("shop").unwrap()
}

pub(crate) fn name(name: &str) -> TableName {
    TableName::new("", name)
}

pub(crate) struct Feed {
    pub(crate) feed: Box<dyn ChangeFeed>,
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) position: Position,
}

impl Feed {
    /// What comes until the source is read to its end, for people: `t update 1,'a'`, `t delete 1`.
    pub(crate) async fn all(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let mut changes = Changes::new();
            let progress = self.feed.next(None, &mut changes).await.unwrap();
            self.position = progress.position.clone();
            for transaction in changes.transactions() {
                for change in changes.of(transaction) {
                    let table = &self.tables[change.table];
                    let word = match change.op {
                        Op::Delete => "delete",
                        _ => "update",
                    };
                    let mut line = format!("{} {word}", table.name);
                    if let Some(row) = change.row {
                        line = format!("{line} {}", show(row));
                    }
                    if let Some(key) = change.old_key {
                        line =
                            format!("{line} {}{}", if change.row.is_some() { "was " } else { "" }, show(key));
                    }
                    seen.push(line);
                }
            }
            if changes.transactions().is_empty() || progress.behind == 0 {
                return seen;
            }
        }
    }

    pub(crate) async fn failure(&mut self) -> tidegate_core::Error {
        for _ in 0..20 {
            if let Err(error) = self.feed.next(None, &mut Changes::new()).await {
                return error;
            }
        }
        panic!("the feed goes on");
    }
}

/// Cells with their classes: `1,'a',x'00',null`.
pub(crate) fn show(row: Row<'_>) -> String {
    let cells = row.cells().map(|cell| match cell {
        tidegate_core::Cell::Bytes(bytes) => match Value::decode(bytes).unwrap() {
            Value::Text(text) => format!("'{text}'"),
            bytes @ Value::Bytes(_) => format!("x'{bytes}'"),
            Value::Float(v) => format!("{v:?}"),
            other => other.to_string(),
        },
        tidegate_core::Cell::Null => "null".to_owned(),
        tidegate_core::Cell::Unchanged => "unchanged".to_owned(),
    });
    cells.collect::<Vec<_>>().join(",")
}

pub(crate) fn shown(rows: &Rows) -> Vec<String> {
    rows.iter().map(show).collect()
}

/// A route to a table of the same shape.
pub(crate) fn route(table: &Arc<Table>) -> Route {
    Route { shape: Shape { table: Arc::clone(table), codec: Arc::new(Canonical) }, target: Arc::clone(table) }
}
