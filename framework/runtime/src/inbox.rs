//! Effects that happen once: what a handler writes, and the note that it did, in one transaction of the application's store.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tidegate_core::port::Transactional;
use tidegate_core::{FlowName, Ids, Message, Result};
use xxhash_rust::xxh3::xxh3_128;

use crate::flow::flow;
use crate::service::{Context, Failure, FromContext, IntoEnded};

/// How long an id may be that stands in a note as it is.
const ID_BYTES_MAX: usize = 200;

/// The notes of one service, in the store that its handlers write to.
///
/// A handler that is given one as its [`State`](crate::State), or a state that has one (`AsRef`), asks for [`Once`]. What it
/// writes in the transaction that it gets there has its effect once, however often the message comes:
///
/// ```
/// # use serde::Deserialize;
/// use tidegate_core::port::Transactional;
/// use tidegate_runtime::{Begun, Committed, Failure, Json, Once};
/// # #[derive(Deserialize)]
/// # struct OrderPlaced { order: String }
/// # impl tidegate_runtime::Typed for OrderPlaced { const KIND: &str = "order.placed.v1"; }
/// # async fn insert<Tx>(_: &mut Tx, _: &str) -> Result<(), std::io::Error> { Ok(()) }
///
/// async fn bill<T: Transactional>(once: Once<T>, Json(placed): Json<OrderPlaced>) -> Result<Committed, Failure> {
///     let mut tx = match once.begin().await? {
///         Begun::New(tx) => tx,
///         Begun::Before(done) => return Ok(done),
///     };
///     insert(&mut *tx, &placed.order).await?; // with SQL of your own
///     Ok(tx.commit().await?)
/// }
/// ```
pub struct Inbox<T> {
    store: Arc<T>,
    flow: FlowName,
}

impl<T> Clone for Inbox<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), flow: self.flow.clone() }
    }
}

impl<T> fmt::Debug for Inbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("flow", &self.flow).finish_non_exhaustive()
    }
}

impl<T> AsRef<Self> for Inbox<T> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<T: Transactional> Inbox<T> {
    /// The notes of a service of this name: another one handles the same message on its own.
    ///
    /// # Errors
    /// None for any name: what does not fit is cut, and told apart by a hash.
    pub fn new(store: T, service: &str) -> Result<Self> {
        let flow = flow("inbox", service)?;
        Ok(Self { store: Arc::new(store), flow })
    }

    /// Forgets what was handled longer ago than messages may come again: how many. Dead letters that are replayed later were
    /// never handled, and are not meant by that.
    ///
    /// # Errors
    /// As the store.
    ///
    /// # Cancel safety
    /// A dropped call may have forgotten some of it, or all; call it again.
    pub async fn forget(&self, older_than: Duration) -> Result<u64> {
        let micros = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX);
        self.store.forget(&self.flow, micros).await
    }
}

/// What a handler asks for that is to have its effect once.
#[derive(Debug)]
pub struct Once<T> {
    inbox: Inbox<T>,
    id: String,
}

/// A transaction for a message that was not handled yet, or that it was.
pub enum Begun<T: Transactional> {
    /// It was not.
    New(Effect<T>),
    /// It was: there is nothing to do.
    Before(Committed),
}

impl<T: Transactional> fmt::Debug for Begun<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Begun::New(_) => "New",
            Begun::Before(_) => "Before",
        })
    }
}

/// A transaction that has the note in it. What is not committed is undone, and the message may come again.
#[must_use = "what is not committed is undone"]
pub struct Effect<T: Transactional> {
    store: Arc<T>,
    tx: T::Tx,
}

impl<T: Transactional> fmt::Debug for Effect<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Effect").finish_non_exhaustive()
    }
}

/// Says that the effect is there. A handler that returns it cannot forget to commit.
#[derive(Debug)]
#[must_use = "return it from the handler"]
pub struct Committed(());

impl IntoEnded for Committed {
    fn into_ended(self, _: &dyn Ids, _: &str) -> Result<Option<Message>, Failure> {
        Ok(None)
    }
}

impl<S: AsRef<Inbox<T>>, T: Transactional> FromContext<S> for Once<T> {
    fn from_context(context: &Context<'_, S>) -> Result<Self> {
        let message = &context.delivery.message;
        let id = format!("{}/{}\n{}", context.channel, message.source, message.id);
        let id = if id.len() > ID_BYTES_MAX { format!("{:032x}", xxh3_128(id.as_bytes())) } else { id };
        Ok(Self { inbox: context.state.as_ref().clone(), id })
    }
}

impl<T: Transactional> Once<T> {
    /// Begins a transaction, and notes in it that the message is handled.
    ///
    /// # Errors
    /// As the store.
    ///
    /// # Cancel safety
    /// A dropped call has no effect: the transaction is undone, and the note with it.
    pub async fn begin(self) -> Result<Begun<T>> {
        let Inbox { store, flow } = self.inbox;
        let mut tx = store.begin().await?;
        if store.note(&mut tx, &flow, &self.id).await? {
            Ok(Begun::New(Effect { store, tx }))
        } else {
            Ok(Begun::Before(Committed(())))
        }
    }
}

impl<T: Transactional> Effect<T> {
    /// Makes the effect, and the note, durable.
    ///
    /// # Errors
    /// As the store. The handler fails then, and is told by the note whether it happened when the message comes again.
    ///
    /// # Cancel safety
    /// A dropped call may have committed, and note and effect are there both or neither: the note tells when the message comes again.
    pub async fn commit(self) -> Result<Committed> {
        self.store.commit(self.tx).await?;
        Ok(Committed(()))
    }
}

impl<T: Transactional> Deref for Effect<T> {
    type Target = T::Tx;

    fn deref(&self) -> &T::Tx {
        &self.tx
    }
}

impl<T: Transactional> DerefMut for Effect<T> {
    fn deref_mut(&mut self) -> &mut T::Tx {
        &mut self.tx
    }
}
