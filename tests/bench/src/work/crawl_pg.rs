//! `crawl-pg`: a whole table into a second PostgreSQL with the key in place.

use tokio::time::Instant;

use crate::ground::{Ground, connect, count, rate};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours, peers};

/// Beside a pipe of `psql`s and `pgcopydb`.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let url = ground.fill("crawl_pg").await?;
    let target = ground.empty("crawl_pg", "int8").await?;
    let (own, pipe) = beside_pipe(ground, &url, &target).await?;
    let mut rows = vec![Row::new("crawl-pg", "rows/s", &own, "psql COPY binary pipe", &pipe, 1.4)];
    let against = "pgcopydb clone";
    rows.push(match beside_pgcopydb(ground, &url).await {
        Ok(theirs) => Row::new("crawl-pg", "rows/s", &own, against, &theirs, 2.0),
        Err(error) => Row::new("crawl-pg", "rows/s", &own, against, &Samples::default(), 2.0)
            .with_note(format!("not measured: {error}")),
    });
    Ok(rows)
}

/// Ours and a pipe of `psql`s.
pub(super) async fn beside_pipe(ground: &Ground, url: &str, target: &str) -> Result<(Samples, Samples)> {
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
