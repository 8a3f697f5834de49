//! The source's end: a sink whose calls are done by somebody else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Applied, Batch, Checkpoint, Commit, Opened, Route, Sink, TableBatch};
use tidegate_core::{Canonical, Cell, Codec as _, Error, FlowName, Key, Result, Row, RowWriter, Rows, Shape};
use tidegate_runtime::{Publisher, Receiver};

use super::wire::{CALL, Call, CarriedRoute, Parts, Place, Reply, messages};
use super::{PATIENCE, Via};
use crate::plant::{self, Bug};

/// Who serves the target says at least so often that it is there.
const SILENCE: Duration = Duration::from_secs(10);

/// How long closing may take.
const CLOSE: Duration = Duration::from_secs(5);

pub(super) struct CarriedSink {
    flow: FlowName,
    routes: Vec<CarriedRoute>,
    /// Of each route whose rows are carried as canonical values, how they are read.
    recoded: Vec<Option<Shape>>,
    publisher: Publisher,
    receiver: Receiver,
    parts: Parts,
    via: Via,
    place: Place,
}

impl CarriedSink {
    pub(super) async fn open(via: &Via, flow: &FlowName, routes: &[Route]) -> Result<Self> {
        let ways = via.prepare(flow).await?;
        let broker = via.broker.as_ref();
        let is_known =
            |shape: &Shape| via.codecs.iter().any(|codec| codec.encoding() == shape.codec.encoding());
        let carried = |route: &Route| CarriedRoute {
            source: route.shape.table.as_ref().clone(),
            encoding: if is_known(&route.shape) {
                route.shape.codec.encoding()
            } else {
                Canonical.encoding()
            }
            .0
            .to_owned(),
            target: route.target.as_ref().clone(),
        };
        let recoded = |route: &Route| (!is_known(&route.shape)).then(|| route.shape.clone());
        Ok(Self {
            flow: flow.clone(),
            routes: routes.iter().map(carried).collect(),
            recoded: routes.iter().map(recoded).collect(),
            publisher: Publisher::open(broker, &ways.calls, Arc::clone(&via.clock), PATIENCE).await?,
            receiver: Receiver::open(broker, &ways.caller, Arc::clone(&via.clock)).await?,
            parts: Parts::default(),
            place: Place { session: via.ids.next().simple().to_string().into(), number: 0 },
            via: via.clone(),
        })
    }

    /// Has a call done.
    async fn call(&mut self, call: Call) -> Result<Reply> {
        self.place.number += 1;
        let size = self.via.broker.capabilities().message_bytes_max;
        let parts = messages(CALL, &self.flow, &self.place, 0, call.encode()?, size)?;
        self.publisher.publish(&parts).await?;
        loop {
            let Some(delivery) = self.receiver.next(SILENCE).await? else {
                return Err(Error::new(code::TIMED_OUT, "nobody answers at the target's end of the broker")
                    .with("broker", self.via.broker.location())
                    .hint("tidegate migrate run --role target"));
            };
            let whole = self.parts.take(delivery)?;
            self.receiver.settle(&self.parts.tokens()).await?;
            // What is left of an earlier session, or comes twice, answers nothing.
            let Some(whole) = whole.filter(|whole| whole.place == self.place || plant::is(Bug::AnyReply))
            else {
                continue;
            };
            match Reply::decode(whole.body)? {
                Reply::Working => {}
                Reply::Failed(error) => return Err(error),
                Reply::Unknown => {
                    return Err(Error::new(code::CONNECTION_LOST, "who serves the target was started anew")
                        .verdict_is(Verdict::Retry));
                }
                reply => return Ok(reply),
            }
        }
    }

    /// The batch with its rows in an encoding that the other end knows.
    fn recode(&self, batch: &Batch) -> Result<Batch> {
        let part = |part: &TableBatch| {
            let Some(shape) = &self.recoded[part.table] else { return Ok(part.clone()) };
            let (key, all): (Vec<usize>, Vec<usize>) =
                (shape.table.key.clone(), (0..shape.table.columns.len()).collect());
            let target = &self.routes[part.table].target.name;
            let rows = |rows: &Rows, columns: &[usize]| {
                let mut out = Rows::new();
                let recoded = rows.iter().try_for_each(|row| recode(shape, row, columns, &mut out));
                recoded.map(|()| out).map_err(|error| error.with("table", target))
            };
            Ok(TableBatch {
                deletes: rows(&part.deletes, &key)?,
                upserts: rows(&part.upserts, &all)?,
                updates: rows(&part.updates, &all)?,
                ..*part
            })
        };
        Ok(Batch { tables: batch.tables.iter().map(part).collect::<Result<_>>()? })
    }

    /// The keys of holes as the source has them.
    fn restore(&self, batch: &Batch, holes: Vec<(usize, Key)>) -> Result<Vec<(usize, Key)>> {
        let mut out = Vec::with_capacity(holes.len());
        for (table, key) in holes {
            let Some(shape) = self.recoded.get(table).and_then(Option::as_ref) else {
                out.push((table, key));
                continue;
            };
            let parts = batch.tables.iter().filter(|part| part.table == table);
            for row in parts.flat_map(|part| part.updates.iter()) {
                let own = shape.cut_key(row);
                let mut carried = Rows::new();
                recode(shape, own.row(), &shape.table.key, &mut carried)?;
                if carried.row(0) == key.row() {
                    out.push((table, own));
                    break;
                }
            }
        }
        Ok(out)
    }
}

/// Writes a row whose cells stand for these columns as canonical values.
fn recode(shape: &Shape, row: Row<'_>, columns: &[usize], out: &mut Rows) -> Result<()> {
    let mut values = Vec::with_capacity(columns.len());
    for (cell, at) in row.cells().zip(columns) {
        let value = shape.value(*at, cell);
        values.push(value.map_err(|error| error.with("column", &shape.table.columns[*at].name))?);
    }
    out.push_with(|row: &mut RowWriter<'_>| {
        for value in &values {
            match value {
                Some(value) => row.value(value),
                None => row.cell(Cell::Unchanged),
            }
        }
    });
    Ok(())
}

fn unexpected() -> Error {
    Error::new(code::MESSAGE_INVALID, "the target's end of the broker answered something else")
}

#[async_trait]
impl Sink for CarriedSink {
    async fn open(&mut self, first: &Checkpoint) -> Result<Opened> {
        let call = Call::Open { routes: self.routes.clone(), first: first.clone() };
        let Reply::Opened(opened) = self.call(call).await? else { return Err(unexpected()) };
        Ok(opened)
    }

    async fn apply(&mut self, batch: &Batch, commit: Option<&Commit>) -> Result<Applied> {
        let call = Call::Apply { batch: self.recode(batch)?, commit: commit.cloned() };
        let Reply::Applied(mut applied) = self.call(call).await? else { return Err(unexpected()) };
        applied.holes = self.restore(batch, applied.holes)?;
        Ok(applied)
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        let Reply::Closed = self.call(Call::Close).await? else { return Err(unexpected()) };
        self.publisher.close(CLOSE).await?;
        self.receiver.close(CLOSE).await
    }
}
