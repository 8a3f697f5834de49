//! Reading a whole table, to nothing and into a second server.

use std::sync::Arc;

use tokio::time::Instant;

use crate::discard::Discard;
use crate::ground::{Ground, connect, count, rate};
use crate::report::{Row, Samples};
use crate::{Result, ours, peers};

fn equal(found: u64, wanted: u64) -> Result<()> {
    if found == wanted { Ok(()) } else { Err(format!("{found} rows arrived of {wanted}").into()) }
}

/// `crawl-null`: PostgreSQL to nothing, one worker.
pub async fn to_nothing(ground: &Ground) -> Result<Vec<Row>> {
    let url = ground.fill("crawl_null").await?;
    let rows = ground.size.rows;
    let (mut own, mut bare, mut psql) = (Samples::default(), Samples::default(), Samples::default());
    for (run, counts) in ground.size.runs() {
        let nothing = Discard::default();
        let flow = ours::flow_to_nothing(&format!("null{run}"), ours::open(&url)?, Arc::new(nothing.clone()))
            .await?;
        let start = Instant::now();
        ours::run(&flow).await?;
        own.push_if(counts, rate(rows, start));
        ours::clean(&flow).await?;
        equal(nothing.taken(), rows)?;
        let start = Instant::now();
        peers::bare_copy_out(&url).await?;
        bare.push_if(counts, rate(rows, start));
        let start = Instant::now();
        peers::psql_copy_out(&url).await?;
        psql.push_if(counts, rate(rows, start));
    }
    Ok(vec![
        Row::new("crawl-null", "rows/s", &own, "bare copy_out loop", &bare, 0.8),
        Row::new("crawl-null", "rows/s", &own, "psql COPY binary", &psql, 1.2),
    ])
}

/// `crawl-pg`: into a second PostgreSQL with the key in place.
pub async fn to_postgres(ground: &Ground) -> Result<Vec<Row>> {
    let url = ground.fill("crawl_pg").await?;
    let target = ground.empty("crawl_pg", "int8").await?;
    let (own, pipe) = beside_pipe(ground, &url, &target).await?;
    let mut rows = vec![Row::new("crawl-pg", "rows/s", &own, "psql COPY binary pipe", &pipe, 1.4)];
    let against = "pgcopydb clone";
    rows.push(match beside_pgcopydb(ground, &url).await {
        Ok(theirs) => Row::new("crawl-pg", "rows/s", &own, against, &theirs, 2.0),
        Err(error) => Row::new("crawl-pg", "rows/s", &own, against, &Samples::default(), 2.0)
            .with_note(format!("not run: {error}")),
    });
    Ok(rows)
}

/// `crawl-random`: the same with random keys.
pub async fn at_random(ground: &Ground) -> Result<Vec<Row>> {
    let url = ground.fill_at_random("crawl_random").await?;
    let target = ground.empty("crawl_random", "uuid").await?;
    let (own, pipe) = beside_pipe(ground, &url, &target).await?;
    Ok(vec![Row::new("crawl-random", "rows/s", &own, "psql COPY binary pipe", &pipe, 1.0)])
}

async fn beside_pipe(ground: &Ground, url: &str, target: &str) -> Result<(Samples, Samples)> {
    let rows = ground.size.rows;
    let (mut own, mut pipe) = (Samples::default(), Samples::default());
    let client = connect(target).await?;
    for (run, counts) in ground.size.runs() {
        client.batch_execute("TRUNCATE bench").await?;
        ground.settle().await?;
        let flow = ours::flow(&format!("crawl{run}"), ours::open(url)?, ours::open(target)?).await?;
        let start = Instant::now();
        ours::run(&flow).await?;
        own.push_if(counts, rate(rows, start));
        ours::clean(&flow).await?;
        equal(count(target).await?, rows)?;

        client.batch_execute("TRUNCATE bench").await?;
        ground.settle().await?;
        let start = Instant::now();
        peers::psql_pipe(url, target).await?;
        pipe.push_if(counts, rate(rows, start));
        equal(count(target).await?, rows)?;
    }
    Ok((own, pipe))
}

async fn beside_pgcopydb(ground: &Ground, url: &str) -> Result<Samples> {
    let rows = ground.size.rows;
    let target = ground.target.create_database("pgcopydb").await?;
    let mut theirs = Samples::default();
    for (_, counts) in ground.size.runs() {
        let folder = tempfile::tempdir()?;
        ground.settle().await?;
        let start = Instant::now();
        peers::pgcopydb(url, &target, &folder.path().join("state")).await?;
        theirs.push_if(counts, rate(rows, start));
        equal(count(&target).await?, rows)?;
    }
    Ok(theirs)
}
