//! One transaction of a sink: the fence, the ledger, rows, and the notes of rows that are missing.

use std::time::Duration;

use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::{ClientSession, Database};
use tidegate_core::error::{Verdict, code};
use tidegate_core::port::{Batch, Commit};
use tidegate_core::{Error, Key, Result};

use crate::error::{During, from_answer, is_kept_out};
use crate::sink::MongoSink;
use crate::write::{Kind, Statement, command};
use crate::{checkpoint, extended};

/// How often a transaction that had no effect is done again.
const ATTEMPTS: u32 = 12;

/// A batch that is being applied.
pub(crate) struct Work<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) commit: Option<&'a Commit>,
    /// Those of its transactions so far.
    pub(crate) holes: Vec<(usize, Key)>,
}

/// What one transaction does.
pub(crate) struct Piece<'a> {
    pub(crate) statements: &'a [Statement],
    /// A row that is left out, to be noted.
    pub(crate) hole: Option<(usize, Key)>,
    /// It is the last one of its batch and has the commit.
    pub(crate) ends: bool,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Written {
    All,
    /// Nothing: another document has the values of one of its rows in a unique index.
    KeptOut,
}

impl MongoSink {
    /// One transaction, done again as long as it had no effect.
    pub(crate) async fn transact(&mut self, piece: &Piece<'_>, work: &mut Work<'_>) -> Result<Written> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => start(&self.database).await?,
        };
        let done = self.transact_in(&mut session, piece, work).await;
        self.session = Some(session);
        Ok(match done? {
            Some(holes) => {
                work.holes.extend(holes);
                Written::All
            }
            None => Written::KeptOut,
        })
    }

    async fn transact_in(
        &self,
        session: &mut ClientSession,
        piece: &Piece<'_>,
        work: &Work<'_>,
    ) -> Result<Option<Vec<(usize, Key)>>> {
        let mut tries = Tries::default();
        loop {
            begin(session).await?;
            let written = self.write(session, piece, work).await;
            if let Some(done) = tries.end(session, written).await {
                return done;
            }
        }
    }

    /// Gives the holes of this transaction, or nothing if a row was kept out.
    async fn write(
        &self,
        session: &mut ClientSession,
        piece: &Piece<'_>,
        work: &Work<'_>,
    ) -> Result<Option<Vec<(usize, Key)>>> {
        let commit = work.commit.filter(|_| piece.ends);
        checkpoint::advance(&self.database, session, &self.flow, &self.routes, self.fence, commit).await?;
        if let Some(commit) = commit {
            let (database, forgotten) = (&self.database, &commit.forget);
            self.identities.note(database, session, &self.flow, &self.routes, forgotten).await?;
        }
        let mut holes = Vec::from_iter(piece.hole.clone());
        for group in piece.statements.chunk_by(|a, b| (a.kind, a.table) == (b.kind, b.table)) {
            let Some(first) = group.first() else { continue };
            let writer = self.writer(first.table)?;
            let identity = self.identities.of(first.table).ok_or_else(|| writer.route.table_missing())?;
            let command = command(first.kind, &writer.collection, identity, group);
            let answer = self.database.run_raw_command(command).session(&mut *session).await;
            if is_kept_out(&answer) {
                return Ok(None);
            }
            let answer = answer.during("write rows").map_err(|error| writer.refused(error))?;
            if let Some(error) = from_answer(&answer, "write rows") {
                return Err(writer.refused(error));
            }
            let met = usize::try_from(answer.get_i32("n").unwrap_or(0)).unwrap_or(0);
            if first.kind == Kind::Update && met < group.len() && !is_crawling(work.batch, first.table) {
                self.find_holes(session, group, work.batch, &mut holes).await?;
            }
        }
        // A commit forgets notes first, and those of earlier transactions of this batch may be among them.
        let earlier = if commit.is_some() { work.holes.as_slice() } else { &[] };
        for holes in [earlier, &holes] {
            checkpoint::note(&self.database, session, &self.flow, &self.routes, holes).await?;
        }
        Ok(Some(holes))
    }

    /// The keys of updates that met no row.
    async fn find_holes(
        &self,
        session: &mut ClientSession,
        group: &[Statement],
        batch: &Batch,
        holes: &mut Vec<(usize, Key)>,
    ) -> Result<()> {
        for statement in group {
            let writer = self.writer(statement.table)?;
            let collection = self.database.collection::<RawDocumentBuf>(&writer.collection);
            let filter = Document::try_from(statement.filter()?).map_err(extended::unreadable)?;
            let find = collection.find_one(filter).projection(doc! { "_id": 1 }).session(&mut *session);
            if find.await.during("look for a row")?.is_none() {
                holes.push((statement.table, writer.key(batch, statement)?));
            }
        }
        Ok(())
    }
}

fn is_crawling(batch: &Batch, table: usize) -> bool {
    batch.tables.iter().any(|part| part.table == table && part.crawling)
}

/// How often a transaction was done that had no effect.
#[derive(Default)]
pub(crate) struct Tries(u32);

impl Tries {
    /// Commits what was done in a transaction, or undoes it if it came to nothing. Says what became of it, or nothing
    /// if it had no effect and is to be done again.
    pub(crate) async fn end<T>(
        &mut self,
        session: &mut ClientSession,
        done: Result<Option<T>>,
    ) -> Option<Result<Option<T>>> {
        let ended = match done {
            Ok(Some(given)) => commit(session).await.map(|()| Some(given)),
            other => {
                // Where the server has ended it already there is nothing left to undo.
                let _ = session.abort_transaction().await;
                // Nobody asked for a commit: it is known that there was none.
                other.map_err(|error| match error.verdict() {
                    Verdict::Unknown => error.verdict_is(Verdict::Retry),
                    _ => error,
                })
            }
        };
        match ended {
            Err(error) if is_worth_again(&error) && self.0 < ATTEMPTS => pause(self.0).await,
            ended => return Some(ended),
        }
        self.0 += 1;
        None
    }
}

fn is_worth_again(error: &Error) -> bool {
    error.verdict() == Verdict::Retry && error.code() != code::UNREACHABLE
}

async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(5 << attempt.min(7))).await;
}

pub(crate) async fn start(database: &Database) -> Result<ClientSession> {
    database.client().start_session().await.during("start a session")
}

pub(crate) async fn begin(session: &mut ClientSession) -> Result<()> {
    session.start_transaction().await.during("begin")
}

/// Commits, and asks again where it is not known whether it was committed.
async fn commit(session: &mut ClientSession) -> Result<()> {
    let mut attempt = 0;
    loop {
        match session.commit_transaction().await.during("commit") {
            Err(error) if error.verdict() == Verdict::Unknown && attempt < ATTEMPTS => pause(attempt).await,
            other => return other,
        }
        attempt += 1;
    }
}
