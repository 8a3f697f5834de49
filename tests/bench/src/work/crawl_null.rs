//! `crawl-null`: reading a whole table, to nothing, one worker.

use std::sync::Arc;

use tokio::time::Instant;

use crate::discard::Discard;
use crate::ground::{Ground, rate};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours, peers};

/// Beside a bare loop and `psql`.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
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
