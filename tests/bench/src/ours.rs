//! Our own side: flows as a migration runs them.

use std::sync::Arc;

use tidegate_core::port::{
    Checkpoint, Commit, Conversions, KeyRange, Opened, RangeProgress, Route, Selection, Store,
};
use tidegate_core::{Endpoint, FlowName, Shape, SystemClock, Table};
use tidegate_flow::{Flow, Gauge, Options, Until, run_once};
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
    let from = source.catalog().await?;
    let to = target.catalog().await?;
    let codec = from.codec();
    let mut routes = Vec::new();
    for table in from.describe(&Selection::All).await?.0 {
        let mut held = Table { name: to.name_for(&table.name), ..table.clone() };
        for column in &mut held.columns {
            let fit = to.fit(column, codec.encoding(), &Conversions::new())?;
            (column.native, column.kind) = (fit.native, fit.kind);
        }
        let shape = Shape { table: Arc::new(table), codec: Arc::clone(&codec) };
        routes.push(Route { shape, target: Arc::new(held) });
    }
    let targets: Vec<_> = routes.iter().map(|route| Arc::clone(&route.target)).collect();
    to.create(&targets).await?;
    made(name, source, target, routes)
}

/// A flow to a target that has none.
pub async fn flow_to_nothing(name: &str, source: Arc<dyn Store>, target: Arc<dyn Store>) -> Result<Flow> {
    let from = source.catalog().await?;
    let codec = from.codec();
    let tables = from.describe(&Selection::All).await?.0.into_iter().map(Arc::new);
    let routes = tables.map(|table| Route {
        shape: Shape { table: Arc::clone(&table), codec: Arc::clone(&codec) },
        target: table,
    });
    let routes = routes.collect();
    made(name, source, target, routes)
}

fn made(name: &str, source: Arc<dyn Store>, target: Arc<dyn Store>, routes: Vec<Route>) -> Result<Flow> {
    let (options, clock) = (Options::default(), SystemClock::shared());
    Ok(Flow { name: FlowName::new(name)?, source, target, routes, options, clock })
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
    Ok(Checkpoint {
        source: catalog.identity().await?,
        replay: position.clone(),
        position,
        ranges: ranges.collect(),
        excluded: Vec::new(),
    })
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
