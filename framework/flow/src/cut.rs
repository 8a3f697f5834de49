//! Cuts what was delivered into pieces.

use tidegate_core::{Change, Changes};

/// Cuts changes where the rows that are read for them would weigh more than the limit, in bytes.
pub(crate) fn cut(changes: Changes, limit: usize, weight: impl Fn(&Change<'_>) -> usize) -> Vec<Changes> {
    let weights: Vec<usize> = (0..changes.count()).map(|at| weight(&changes.change(at))).collect();
    if weights.iter().sum::<usize>() <= limit {
        return vec![changes];
    }
    let (mut pieces, mut piece, mut bytes) = (Vec::new(), Changes::new(), 0);
    for transaction in changes.transactions() {
        let end = |piece: &mut Changes, ends| {
            piece.end(transaction.mark, transaction.position.clone(), transaction.committed_at, ends);
        };
        let places = changes.places(transaction);
        for at in places.clone() {
            if bytes > 0 && bytes + weights[at] > limit {
                if at > places.start {
                    end(&mut piece, false);
                }
                pieces.push(std::mem::take(&mut piece));
                bytes = 0;
            }
            bytes += weights[at];
            let change = changes.change(at);
            piece.push_rows(change.table, change.op, change.row, change.old_key);
        }
        end(&mut piece, transaction.ends);
    }
    pieces.push(piece);
    pieces
}
