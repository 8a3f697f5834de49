//! `crawl-mongo`: PostgreSQL to a collection that is empty.

use mongodb::bson::{RawDocumentBuf, doc};
use tidegate_core::port::Conversions;
use tidegate_services::{Service, mongodb as server, skipped};
use tokio::time::Instant;

use crate::ground::{Ground, rate};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours, peers};

const WORK: &str = "crawl-mongo";
const AGAINST: &str = "bare loop: COPY out, BSON, insert_many";
const BAR: f64 = 0.8;

/// Both sides write the same documents, acknowledged by the set's majority.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let (mut own, mut bare) = (Samples::default(), Samples::default());
    if skipped(Service::Mongodb) {
        let row = Row::new(WORK, "rows/s", &own, AGAINST, &bare, BAR);
        return Ok(vec![row.with_note("not measured: mongodb is skipped")]);
    }
    let server = server::Server::start(server::Options::default()).await?;
    let target = server.database_url("crawl");
    let database = mongodb::Client::with_uri_str(&target).await?.database("crawl");
    let version = database.run_command(doc! { "buildInfo": 1 }).await?.get_str("version")?.to_owned();
    ground.names("MongoDB", &version);
    let url = ground.fill("crawl_mongo").await?;
    let rows = ground.size.rows;
    // The instants of the table are whole milliseconds, which is what a date can hold.
    let dates = Conversions::from([("timestamptz".to_owned(), "date".to_owned())]);
    for (run, counts) in ground.size.runs() {
        let (source, to) = (ours::open(&url)?, ours::open(&target)?);
        let flow = ours::flow_with(&format!("mongo{run}"), source, to, dates.clone()).await?;
        let collection = database.collection::<RawDocumentBuf>(&flow.routes[0].target.name.to_string());
        ground.settle().await?;
        let start = Instant::now();
        ours::run(&flow).await?;
        own.push_if(counts, rate(rows, start));
        ours::clean(&flow).await?;
        equal(collection.count_documents(doc! {}).await?, rows)?;
        let ours = collection.find_one(doc! { "_id": 7_i64 }).await?;
        collection.drop().await?;

        ground.settle().await?;
        let start = Instant::now();
        peers::documents::load(&url, &collection).await?;
        bare.push_if(counts, rate(rows, start));
        equal(collection.count_documents(doc! {}).await?, rows)?;
        if ours != collection.find_one(doc! { "_id": 7_i64 }).await? {
            return Err("the two sides write different documents".into());
        }
        collection.drop().await?;
    }
    Ok(vec![Row::new(WORK, "rows/s", &own, AGAINST, &bare, BAR)])
}
