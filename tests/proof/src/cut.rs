//! Planted: a feed that goes on when a table gets a column, and leaves the column out.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_core::error::code;
use tidegate_core::port::{ChangeFeed, Identity, Progress, Selection};
use tidegate_core::{Changes, FlowName, Position, Result, Rows, Table};

use crate::fault::FaultyStore;

pub(crate) struct CutFeed {
    store: FaultyStore,
    flow: FlowName,
    tables: Vec<Arc<Table>>,
    source: Identity,
    at: Position,
    inner: Box<dyn ChangeFeed>,
}

impl CutFeed {
    pub(crate) async fn open(
        store: &FaultyStore,
        flow: &FlowName,
        tables: &[Arc<Table>],
        source: &Identity,
        from: &Position,
    ) -> Result<Self> {
        Ok(Self {
            inner: store.inner.change_feed(flow, tables, source, from).await?,
            store: store.clone(),
            flow: flow.clone(),
            tables: tables.to_vec(),
            source: source.clone(),
            at: from.clone(),
        })
    }

    /// The same feed over the tables as they are now.
    async fn reopen(&mut self) -> Result<()> {
        let names = self.tables.iter().map(|table| table.name.clone()).collect();
        let (tables, _) = self.store.inner.catalog().await?.describe(&Selection::These(names)).await?;
        let tables: Vec<_> = tables.into_iter().map(Arc::new).collect();
        self.inner = self.store.inner.change_feed(&self.flow, &tables, &self.source, &self.at).await?;
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for CutFeed {
    async fn next(&mut self, want: Option<&Position>, out: &mut Changes) -> Result<Progress> {
        self.store.call().await?;
        let mut all = Changes::new();
        let progress = match self.inner.next(want, &mut all).await {
            Err(error) if error.code() == code::SCHEMA_CHANGED => {
                self.reopen().await?;
                self.inner.next(want, &mut all).await?
            }
            other => other?,
        };
        self.at = progress.position.clone();
        for transaction in all.transactions() {
            for change in all.of(transaction) {
                let mut cut = Rows::new();
                let columns = self.tables[change.table].columns.len();
                if let Some(row) = change.row {
                    cut.push_with(|out| row.cells().take(columns).for_each(|cell| out.cell(cell)));
                }
                out.push_rows(change.table, change.op, cut.iter().next(), change.old_key);
            }
            out.end(
                transaction.mark,
                transaction.position.clone(),
                transaction.committed_at,
                transaction.ends,
            );
        }
        Ok(progress)
    }

    async fn acknowledge(&mut self, upto: &Position) -> Result<()> {
        self.inner.acknowledge(upto).await
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
