//! The target of a run with kills, and its rows as texts that the source's own SQL can give too.

use std::collections::HashMap;

use futures::TryStreamExt;
use mongodb::IndexModel;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::IndexOptions;
use tidegate_services::{mongodb as documents, postgres};

use super::{Result, connect};

/// The pairs of stores that are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pair {
    /// PostgreSQL to PostgreSQL.
    PostgresPostgres,
    /// PostgreSQL to MongoDB.
    PostgresMongodb,
}

impl Pair {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Pair::PostgresPostgres => "postgres-postgres",
            Pair::PostgresMongodb => "postgres-mongodb",
        }
    }

    /// Key and row as text, as the source has to give them for each table.
    pub(super) fn source_queries(self) -> [&'static str; 2] {
        match self {
            Pair::PostgresPostgres => ACCOUNT_AND_HISTORY,
            Pair::PostgresMongodb => [
                "SELECT id::text, concat_ws('|', version, coalesce(note, '-'), coalesce(large, '-'),
                    coalesce(place::text, '-')) FROM account",
                "SELECT a || ' ' || b, concat_ws('|', payload ->> 'n', amount,
                    to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US\"Z\"')) FROM history",
            ],
        }
    }
}

const ACCOUNT_AND_HISTORY: [&str; 2] =
    ["SELECT id::text, t::text FROM account t", "SELECT a || ' ' || b, t::text FROM history t"];

/// The server rows go to.
#[derive(Debug)]
pub(super) enum Target {
    Postgres(postgres::Server, String),
    Mongodb(documents::Server),
}

impl Target {
    pub(super) async fn start(pair: Pair) -> Result<Self> {
        Ok(match pair {
            Pair::PostgresPostgres => {
                let server = super::server().await?;
                let url = server.create_database("shop").await?;
                Self::Postgres(server, url)
            }
            Pair::PostgresMongodb => {
                Self::Mongodb(documents::Server::start(documents::Options::default()).await?)
            }
        })
    }

    pub(super) fn url(&self) -> String {
        match self {
            Self::Postgres(_, url) => url.clone(),
            Self::Mongodb(server) => server.database_url("shop"),
        }
    }

    /// Makes the table that has a second unique index, which a migration does not make.
    pub(super) async fn prepare(&self) -> Result<()> {
        match self {
            Self::Postgres(_, url) => {
                let table = "CREATE TABLE account (id bigint PRIMARY KEY, version bigint NOT NULL, note text, large text,
                    place bigint UNIQUE)";
                connect(url).await?.batch_execute(table).await?;
            }
            Self::Mongodb(server) => {
                let client = mongodb::Client::with_uri_str(server.url()).await?;
                // Null is a value to an index here.
                let numbers = doc! { "place": { "$type": "long" } };
                let options = IndexOptions::builder().unique(true).partial_filter_expression(numbers).build();
                let index = IndexModel::builder().keys(doc! { "place": 1 }).options(options).build();
                client.database("shop").collection::<Document>("account").create_index(index).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn kill(&self) {
        match self {
            Self::Postgres(server, _) => server.kill().await,
            Self::Mongodb(server) => server.kill().await,
        }
    }

    pub(super) async fn restart(&self) -> Result<()> {
        match self {
            Self::Postgres(server, _) => server.restart().await?,
            Self::Mongodb(server) => server.restart().await?,
        }
        Ok(())
    }

    /// The rows of both tables, by key.
    pub(super) async fn rows(&self) -> Result<[HashMap<String, String>; 2]> {
        match self {
            Self::Postgres(_, url) => {
                let [account, history] = ACCOUNT_AND_HISTORY;
                Ok([rows(url, account).await?, rows(url, history).await?])
            }
            Self::Mongodb(server) => {
                let client = mongodb::Client::with_uri_str(server.url()).await?;
                let database = client.database("shop");
                let mut all = [HashMap::new(), HashMap::new()];
                for (table, rows) in ["account", "history"].iter().zip(&mut all) {
                    let mut found = database.collection::<Document>(table).find(Document::new()).await?;
                    while let Some(document) = found.try_next().await? {
                        let (key, row) = texts(table, &document);
                        rows.insert(key, row);
                    }
                }
                Ok(all)
            }
        }
    }
}

/// Key and row of a document, as the source's query has them.
fn texts(table: &str, document: &Document) -> (String, String) {
    let text = |document: &Document, name: &str| match document.get(name) {
        None | Some(Bson::Null) => "-".to_owned(),
        Some(Bson::String(text)) => text.clone(),
        Some(Bson::Binary(binary)) => binary.to_uuid().map(|id| id.to_string()).unwrap_or_default(),
        Some(other) => other.to_string(),
    };
    let empty = Document::new();
    match table {
        "account" => {
            let row = ["version", "note", "large", "place"].map(|name| text(document, name)).join("|");
            (text(document, "_id"), row)
        }
        _ => {
            let id = document.get_document("_id").unwrap_or(&empty);
            let payload = document.get_document("payload").unwrap_or(&empty);
            let row = format!("{}|{}|{}", text(payload, "n"), text(document, "amount"), text(document, "at"));
            (format!("{} {}", text(id, "a"), text(id, "b")), row)
        }
    }
}

/// Rows of a query for key and row.
pub(super) async fn rows(url: &str, query: &str) -> Result<HashMap<String, String>> {
    let none: [&str; 0] = [];
    let client = connect(url).await?;
    let found = client.query_raw(query, none).await?;
    Ok(found.map_ok(|row| (row.get(0), row.get(1))).try_collect().await?)
}
