//! `crawl-random`: as `crawl-pg`, with keys that follow no order.

use crate::Result;
use crate::ground::Ground;
use crate::report::Row;
use crate::work::crawl_pg::beside_pipe;

/// Beside a pipe of `psql`s.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let url = ground.fill_at_random("crawl_random").await?;
    let target = ground.empty("crawl_random", "uuid").await?;
    let (own, pipe) = beside_pipe(ground, &url, &target).await?;
    Ok(vec![Row::new("crawl-random", "rows/s", &own, "psql COPY binary pipe", &pipe, 1.0)])
}
