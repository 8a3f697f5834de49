//! What a store in memory cannot keep.

use async_trait::async_trait;
use tidegate_core::port::{Examiner, Finding, Side, Strain, Weight};
use tidegate_core::{FlowName, Position, Result};

use crate::store::MemoryStore;

#[async_trait]
impl Examiner for MemoryStore {
    async fn examine(&self, _: Side) -> Result<Vec<Finding>> {
        let advice = "everything is gone when the process ends: use it for tests";
        Ok(vec![Finding::new("durability", "none", false, Weight::Loss, advice)])
    }

    async fn strain(&self, _: &FlowName, _: &Position) -> Result<Strain> {
        Ok(Strain::default())
    }

    fn grants(&self, _: Side, _: &str) -> String {
        String::new()
    }
}
