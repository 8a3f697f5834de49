//! Our own side: flows as a migration runs them.

use std::sync::Arc;

use tidegate_core::port::{
    Checkpoint, Commit, Conversions, KeyRange, Opened, RangeProgress, Route, Selection, Store,
};
use tidegate_core::{Endpoint, FlowName, Shape, Table};
use tidegate_flow::{Flow, Gauge, Until, Wanted, plan, run_once};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Result;

/// Opens a store by its URL.
pub fn open(url: &str) -> Result<Arc<dyn Store>> {
    let endpoint = Endpoint::parse(url)?;
    Ok(if url.starts_with("mongodb") {
        tidegate_mongodb::open(&endpoint)?
    } else {
        tidegate_postgres::open(&endpoint)?
    })
}

/// A flow of everything in the source to a target that has a catalog: its tables are made if they are not there.
pub async fn flow(name: &str, source: Arc<dyn Store>, target: Arc<dyn Store>) -> Result<Flow> {
    flow_with(name, source, target, Conversions::new()).await
}

/// The same with types that have to be converted.
pub async fn flow_with(
    name: &str,
    source: Arc<dyn Store>,
    target: Arc<dyn Store>,
    conversions: Conversions,
) -> Result<Flow> {
    let from = source.catalog().await?;
    let to = target.catalog().await?;
    let wanted = Wanted { conversions, allow_non_empty: true, ..Wanted::default() };
    let plan = plan(from.as_ref(), to.as_ref(), &wanted).await?;
    if let Some(obstacle) = plan.obstacles.into_iter().next() {
        return Err(obstacle.error.into());
    }
    let routes: Vec<Route> = plan.tables.into_iter().map(|planned| planned.route).collect();
    let targets: Vec<_> = routes.iter().map(|route| Arc::clone(&route.target)).collect();
    to.create(&targets).await?;
    Ok(Flow::new(FlowName::new(name)?, source, target, routes, Wanted::default()))
}

/// A flow to a target that has none.
pub async fn flow_to_nothing(name: &str, source: Arc<dyn Store>, target: Arc<dyn Store>) -> Result<Flow> {
    let from = source.catalog().await?;
    let tables = from.describe(&Selection::All).await?.0.into_iter().map(Arc::new);
    let routes = tables.map(|table| Route {
        shape: Shape { codec: from.codec(&table), table: Arc::clone(&table) },
        target: table,
    });
    let routes = routes.collect();
    Ok(Flow::new(FlowName::new(name)?, source, target, routes, Wanted::default()))
}

/// Starts to keep changes, and gives the checkpoint of a target that has every row until here.
pub async fn begin(flow: &Flow) -> Result<Checkpoint> {
    let catalog = flow.source.catalog().await?;
    let tables: Vec<Arc<Table>> = flow.routes.iter().map(|route| Arc::clone(&route.shape.table)).collect();
    let position = catalog.capture(&flow.name, &tables).await?;
    let ranges = (0..tables.len()).map(|table| RangeProgress {
        table,
        range: 0,
        rest: KeyRange::default(),
        rows: 0,
        done: true,
    });
    Ok(Checkpoint { ranges: ranges.collect(), ..Checkpoint::first(catalog.identity().await?, position) })
}

/// Lets the target know that it has every row.
pub async fn hand_over(flow: &Flow, checkpoint: &Checkpoint) -> Result<()> {
    let mut sink = flow.target.sink(&flow.name, &flow.routes).await?;
    if sink.open(checkpoint).await? == Opened::New {
        let commit = Commit { ranges: checkpoint.ranges.clone(), ..Commit::default() };
        sink.apply(&tidegate_core::port::Batch::default(), Some(&commit)).await?;
    }
    sink.close().await?;
    Ok(())
}

/// Runs until all that the source has now is in the target.
pub async fn run(flow: &Flow) -> Result<()> {
    let gauge = Gauge::new(&flow.routes, &flow.options);
    let (_nobody_asks, mut requests) = mpsc::unbounded_channel();
    Box::pin(run_once(flow, Until::CaughtUp, &gauge, &mut requests, &CancellationToken::new())).await?;
    Ok(())
}

/// Removes what a flow left at the source.
pub async fn clean(flow: &Flow) -> Result<()> {
    flow.source.catalog().await?.clean(&flow.name).await?;
    Ok(())
}
