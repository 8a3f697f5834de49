//! The slow way of writing, where a unique index keeps a row out.
//!
//! A row may be kept out by what another row of the batch was before: two rows that trade their values, in whatever
//! order they are written. So all rows that are sent whole are removed first, from this transaction to the end of the
//! batch, then partial rows are changed, then whole ones are written. Nothing is lost in between: the rows are in the
//! batch, and the checkpoint does not move before its end.
//!
//! A row that is kept out even then is a hole. It is looked for by halves, its document is removed and its key noted
//! in one transaction. Partial rows that are in each other's way are holes too, until they come whole. Documents that
//! are not in the batch are not touched.

use tidegate_core::{Error, Result, error::code};

use crate::sink::MongoSink;
use crate::transact::{Piece, Work, Written};
use crate::write::{Kind, Statement, pieces};

impl MongoSink {
    /// Writes the rest of a batch, of which something was kept out.
    pub(crate) async fn write_apart(&mut self, mut rest: Vec<Statement>, work: &mut Work<'_>) -> Result<()> {
        let whole = rest.iter().filter(|statement| statement.kind != Kind::Update);
        let removals = whole.map(Statement::removal).collect::<Result<Vec<_>>>()?;
        for statements in pieces(&removals) {
            self.transact_surely(&Piece { statements, hole: None, ends: false }, work).await?;
        }
        rest.retain(|statement| statement.kind != Kind::Delete);
        rest.sort_by_key(|statement| statement.kind == Kind::Upsert);
        let mut left = pieces(&rest);
        left.reverse();
        while let Some(statements) = left.pop() {
            let ends = left.is_empty();
            if self.transact(&Piece { statements, hole: None, ends }, work).await? == Written::All {
                continue;
            }
            if let [one] = statements {
                let hole = Some((one.table, self.writer(one.table)?.key(work.batch, one)?));
                let removal = [one.removal()?];
                self.transact_surely(&Piece { statements: &removal, hole, ends }, work).await?;
            } else {
                let (front, back) = statements.split_at(statements.len() / 2);
                left.extend([back, front]);
            }
        }
        Ok(())
    }

    /// A transaction that only removes: no index can be in its way.
    pub(crate) async fn transact_surely(&mut self, piece: &Piece<'_>, work: &mut Work<'_>) -> Result<()> {
        match self.transact(piece, work).await? {
            Written::All => Ok(()),
            Written::KeptOut => Err(Error::new(code::INTERNAL, "an index was in the way of a deletion")),
        }
    }
}
