//! A small shop in a SQLite file, and what has become of it.

use std::process::ExitCode;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Connection, Row, SqliteConnection};

const SHOP: &str = "
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL);
    CREATE TABLE lines (order_id INTEGER NOT NULL, line_no INTEGER NOT NULL, item TEXT, price TEXT,
        PRIMARY KEY (order_id, line_no));
    INSERT INTO orders VALUES (1, 'ann'), (2, 'bob');
    INSERT INTO lines VALUES (1, 1, 'pen', '2.50'), (1, 2, 'ink', '7.00'), (2, 1, 'cap', '12.00');";

/// Makes the shop.
pub(crate) fn make(file: &str) -> ExitCode {
    told(with(file, true, |connection| {
        Box::pin(async move {
            sqlx::raw_sql(SHOP).execute(connection).await?;
            Ok(vec!["a shop with two orders".to_owned()])
        })
    }))
}

/// Shows the orders as they arrived.
pub(crate) fn show(file: &str) -> ExitCode {
    told(with(file, false, |connection| {
        Box::pin(async move {
            let rows = sqlx::query("SELECT id, customer, lines FROM orders ORDER BY id")
                .fetch_all(connection)
                .await?;
            let line = |row: &sqlx::sqlite::SqliteRow| {
                format!(
                    "order {} of {}: {}",
                    row.get::<i64, _>(0),
                    row.get::<String, _>(1),
                    row.get::<String, _>(2)
                )
            };
            Ok(rows.iter().map(line).collect())
        })
    }))
}

type Answer<'a> =
    std::pin::Pin<Box<dyn std::future::Future<Output = Result<Vec<String>, sqlx::Error>> + Send + 'a>>;

fn with(
    file: &str,
    create: bool,
    work: impl for<'a> FnOnce(&'a mut SqliteConnection) -> Answer<'a>,
) -> Result<Vec<String>, sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(sqlx::Error::Io)?;
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(create);
        let options = options.journal_mode(SqliteJournalMode::Wal);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let lines = work(&mut connection).await?;
        connection.close().await?;
        Ok(lines)
    })
}

fn told(lines: Result<Vec<String>, sqlx::Error>) -> ExitCode {
    match lines {
        Ok(lines) => {
            lines.iter().for_each(|line| println!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
