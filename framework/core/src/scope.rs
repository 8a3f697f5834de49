//! Tasks that end with the scope that started them.

use std::future::Future;

use tokio::task::JoinSet;

use crate::error::{Error, Result, code};

/// Holds background tasks. Dropping it ends them: no task outlives the work that it belongs to.
#[derive(Debug, Default)]
pub struct Scope {
    tasks: JoinSet<Result<()>>,
}

impl Scope {
    /// An empty scope.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is no task.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Starts a task.
    pub fn spawn(&mut self, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits for the next task to end; `None` if there is none. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<()>> {
        Some(match self.tasks.join_next().await? {
            Ok(result) => result,
            Err(e) if e.is_cancelled() => Ok(()),
            Err(e) => Err(Error::new(code::INTERNAL, "a task panicked").because(e)),
        })
    }

    /// Forgets tasks that have ended.
    pub fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// Waits for all tasks and returns the first error.
    ///
    /// # Errors
    /// The first error of a task; the others are ended then.
    pub async fn join(mut self) -> Result<()> {
        while let Some(result) = self.next().await {
            result?;
        }
        Ok(())
    }
}
