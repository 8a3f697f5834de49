//! The one task of a process that writes: whatever has come meanwhile is committed together, so that many producers
//! and consumers wait for one write to the disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tidegate_broker::seats::Member;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{Clock, Error, Result};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::connect;
use crate::consumer::Shared;
use crate::error::During;

/// How many jobs are committed together.
const BATCH_MAX: usize = 64;
/// How many jobs may wait.
pub(crate) const JOBS_MAX: usize = 256;

/// Something to be done in a transaction. It may be run more than once, if the transaction was undone.
#[async_trait]
pub(crate) trait Job: Send + Sync + 'static {
    type Answer: Send + 'static;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Self::Answer>;
}

/// A job and who waits for it.
pub(crate) struct Pending<J: Job> {
    job: J,
    answer: Option<J::Answer>,
    reply: oneshot::Sender<Result<J::Answer>>,
}

/// Jobs of all kinds.
#[async_trait]
pub(crate) trait Erased: Send {
    async fn run(&mut self, connection: &mut SqliteConnection) -> Result<()>;

    /// Tells who waits. Without an error the job is committed.
    fn tell(self: Box<Self>, error: Option<Error>);
}

#[async_trait]
impl<J: Job> Erased for Pending<J> {
    async fn run(&mut self, connection: &mut SqliteConnection) -> Result<()> {
        self.answer = Some(self.job.run(connection).await?);
        Ok(())
    }

    fn tell(self: Box<Self>, error: Option<Error>) {
        let answer = match (error, self.answer) {
            (Some(error), _) => Err(error),
            (None, Some(answer)) => Ok(answer),
            (None, None) => Err(Error::new(code::INTERNAL, "a job was committed without having been run")),
        };
        // Whoever asked may be gone.
        let _ = self.reply.send(answer);
    }
}

/// A job ready to be sent, and where its answer comes.
pub(crate) fn pending<J: Job>(job: J) -> (Box<dyn Erased>, oneshot::Receiver<Result<J::Answer>>) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Pending { job, answer: None, reply }), answer)
}

/// What an answer that never came means.
pub(crate) fn never_answered() -> Error {
    Error::new(code::CONNECTION_LOST, "the task that writes the file has ended")
}

pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    pub(crate) connection: SqliteConnection,
    pub(crate) jobs: mpsc::Receiver<Box<dyn Erased>>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Members of this process, whose leases are renewed here.
    pub(crate) members: Arc<Mutex<BTreeMap<Member, Arc<Shared>>>>,
    pub(crate) lease: Duration,
}

/// How far a transaction came.
enum Failure {
    /// It did not begin, or was undone.
    Undone(Error),
    /// Nobody knows.
    Unknown(Error),
}

impl Writer {
    /// Writes until nobody can ask any more.
    pub(crate) async fn work(mut self) -> Result<()> {
        let clock = Arc::clone(&self.clock);
        let rhythm = self.lease / 3;
        let mut renewed = clock.elapsed();
        loop {
            let wait = rhythm.saturating_sub(clock.elapsed().saturating_sub(renewed));
            let job = tokio::select! {
                job = self.jobs.recv() => Some(job),
                () = clock.sleep(wait) => None,
            };
            match job {
                Some(None) => break,
                Some(Some(first)) => {
                    let mut batch = vec![first];
                    while batch.len() < BATCH_MAX
                        && let Ok(job) = self.jobs.try_recv()
                    {
                        batch.push(job);
                    }
                    self.commit(batch).await;
                    self.changed.notify_waiters();
                }
                None => {}
            }
            if clock.elapsed().saturating_sub(renewed) >= rhythm {
                renewed = clock.elapsed();
                self.renew().await;
            }
        }
        sqlx::Connection::close(self.connection).await.during("close the file")
    }

    async fn renew(&mut self) {
        let members: Vec<Member> =
            self.members.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        if members.is_empty() {
            return;
        }
        let until = self.clock.now().saturating_add(micros(self.lease));
        let (job, _) = pending(Renew { members, until });
        self.commit(vec![job]).await;
    }

    async fn commit(&mut self, mut batch: Vec<Box<dyn Erased>>) {
        match self.attempt(&mut batch).await {
            Ok(()) => batch.into_iter().for_each(|job| job.tell(None)),
            Err(Failure::Undone(error)) if batch.len() == 1 || error.verdict() == Verdict::Retry => {
                batch.into_iter().for_each(|job| job.tell(Some(error.clone())));
            }
            // One of them is at fault: the others are not to suffer for it.
            Err(Failure::Undone(_)) => {
                for job in batch {
                    let mut alone = [job];
                    let error = match self.attempt(&mut alone).await {
                        Ok(()) => None,
                        Err(Failure::Undone(error) | Failure::Unknown(error)) => Some(error),
                    };
                    let [job] = alone;
                    job.tell(error);
                }
            }
            Err(Failure::Unknown(error)) => {
                batch.into_iter().for_each(|job| job.tell(Some(error.clone())));
            }
        }
    }

    async fn attempt(&mut self, batch: &mut [Box<dyn Erased>]) -> Result<(), Failure> {
        self.execute("BEGIN IMMEDIATE").await.map_err(Failure::Undone)?;
        for job in batch {
            if let Err(error) = job.run(&mut self.connection).await {
                self.undo().await;
                // Whatever it was, nothing of it is left.
                let verdict = if error.verdict() == Verdict::Retry { Verdict::Retry } else { Verdict::Never };
                return Err(Failure::Undone(error.verdict_is(verdict)));
            }
        }
        if let Err(error) = self.execute("COMMIT").await {
            self.undo().await;
            return Err(Failure::Unknown(error.verdict_is(Verdict::Unknown)));
        }
        Ok(())
    }

    /// Rolls back. A connection that cannot even do that is given up for a new one.
    async fn undo(&mut self) {
        // A statement that failed for want of disk or memory may have rolled back by itself; then this one fails, and
        // whether a transaction is open has to be found out.
        let _ = self.execute("ROLLBACK").await;
        let is_free = self.execute("BEGIN").await.is_ok() && self.execute("ROLLBACK").await.is_ok();
        if !is_free && let Ok(connection) = connect::creator(&self.path).await {
            self.connection = connection;
        }
    }

    async fn execute(&mut self, text: &'static str) -> Result<()> {
        sqlx::query(text).execute(&mut self.connection).await.during(text)?;
        Ok(())
    }
}

pub(crate) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Numbers as SQLite reads a list.
pub(crate) fn list(numbers: impl IntoIterator<Item = u64>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    format!("[{}]", numbers.join(","))
}

/// A number for SQLite, which has signed ones alone. Ours are places, epochs and counts: they never reach that far.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The way back.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

struct Renew {
    members: Vec<Member>,
    until: i64,
}

#[async_trait]
impl Job for Renew {
    type Answer = ();

    async fn run(&self, connection: &mut SqliteConnection) -> Result<()> {
        sqlx::query("UPDATE tidegate_member SET until = ? WHERE id IN (SELECT value FROM json_each(?))")
            .bind(self.until)
            .bind(list(self.members.iter().copied()))
            .execute(connection)
            .await
            .during("renew leases")?;
        Ok(())
    }
}
