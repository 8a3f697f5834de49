//! Bugs planted on purpose, to show that the proofs would find them. Only the feature `planted-bugs` makes them
//! reachable; without it every question here is answered "no" at compile time.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// Chunk rows are written as they were read.
    NoOverlay,
    /// The window does not keep deletes.
    WindowForgetsDeletes,
    /// After a restart the feed is opened at the checkpoint, and reads begin although the window was lost.
    StaleWindowAfterCrash,
    /// The source may forget what was delivered, before it is in the target.
    AcknowledgeDelivered,
    /// A row whose key moved keeps its unsent columns unsent.
    MovesNotCompleted,
    /// A table that is crawled anew keeps its old rows.
    RecopyKeepsRows,
    /// What a change did not tell is read at an instant that may not show the change.
    MadeTooEarly,
    /// A row that is left out from a change on stays as it was before.
    FilterForgetsRows,
    /// Behind a broker, calls of a session that is over are done.
    AnySession,
    /// Behind a broker, a reply to an earlier call is taken for the one to this.
    AnyReply,
    /// A column with a default is followed as if the rows that were there had null.
    DefaultForgotten,
    /// A row that comes again under an equal key, in another form, is written over what the first form was.
    EqualKeyKept,
    /// What the target noted as missing is forgotten with the process.
    HolesForgotten,
    /// What is missing is written as it was read, whatever changed meanwhile.
    HolesFilledStale,
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use std::cell::Cell;

    use super::Bug;

    std::thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug for everything that runs on this thread, or removes it.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub(crate) use planted::is;
#[cfg(feature = "planted-bugs")]
pub use planted::plant;

#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
