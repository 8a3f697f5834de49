//! Claim checks: large bodies beside the broker, and what says where they are in their messages.

mod folder;

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tidegate_core::error::code;
use tidegate_core::port::Blobs;
use tidegate_core::{Error, Message, Result};

pub use folder::FolderBlobs;

/// The attribute of CloudEvents that says where the body is: the name of the blob, `sha256-` and its hash.
pub const DATAREF: &str = "dataref";
/// The header that says how long the body is, and that it is one of ours.
pub const CLAIM_BYTES: &str = "tg_claim_bytes";

/// Bodies above this stay out of the broker, if nothing else is said.
const LIMIT: usize = 128 << 10;
const PREFIX: &str = "sha256-";

/// Where large bodies are kept. A [`Sender`](crate::Sender) that has it puts bodies above the limit there, and sends the reference; a
/// [`Service`](crate::Service) that has it fetches them, so that handlers see whole messages. A body that is not there, or is another
/// one, makes a dead letter of its message.
///
/// A blob is stored before its message, so that who has the message finds it. Nothing removes blobs but [`Blobs::purge`], since nobody
/// knows who will still read a message: purge what is older than channels, and dead letters, are kept.
#[derive(Clone, Debug)]
pub struct Claims {
    blobs: Arc<dyn Blobs>,
    limit: usize,
}

impl Claims {
    /// Bodies above 128 KiB are kept here.
    pub fn new(blobs: Arc<dyn Blobs>) -> Self {
        Self { blobs, limit: LIMIT }
    }

    /// Another limit, in bytes.
    #[must_use]
    pub fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Puts the body of a message away if it is too large.
    pub(crate) async fn put(&self, message: &mut Message) -> Result<()> {
        if message.data.len() <= self.limit {
            return Ok(());
        }
        let name = name(&message.data);
        message.headers.set(CLAIM_BYTES, message.data.len().to_string())?;
        message.extensions.set(DATAREF, name.as_str())?;
        // A message that would be refused needs no blob.
        let body = std::mem::take(&mut message.data);
        message.check()?;
        self.blobs.put(&name, body).await
    }

    /// Gives a message its body back.
    pub(crate) async fn fetch(&self, message: &mut Message) -> Result<()> {
        let missing = |what: String| Error::new(code::BODY_MISSING, what).with("message", &message.id);
        let wanted = message.extensions.get(DATAREF).unwrap_or_default();
        let is_ours = wanted
            .strip_prefix(PREFIX)
            .is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()));
        if !is_ours {
            return Err(missing("the message does not say where its body is".to_owned()));
        }
        let body = self.blobs.get(wanted).await?;
        let body = body.ok_or_else(|| missing(format!("there is no blob {wanted}")))?;
        let bytes = message.headers.get(CLAIM_BYTES).unwrap_or_default();
        if body.len().to_string() != bytes || name(&body) != wanted {
            let what =
                format!("the blob {wanted} has {} bytes that are not the {bytes} that were put", body.len());
            return Err(missing(what));
        }
        forget(message);
        message.data = body;
        Ok(())
    }
}

/// What a service does with messages whose bodies are elsewhere.
#[derive(Clone, Debug)]
pub(crate) enum Claimed {
    /// It does not know where.
    Unknown,
    Fetch(Claims),
    /// It hands them on as they are.
    Pass,
}

/// Whether the body of a message is elsewhere.
pub(crate) fn is_claimed(message: &Message) -> bool {
    message.headers.get(CLAIM_BYTES).is_some()
}

/// The message has a body of its own.
pub(crate) fn forget(message: &mut Message) {
    message.headers.remove(CLAIM_BYTES);
    message.extensions.remove(DATAREF);
}

fn name(data: &[u8]) -> String {
    let mut name = PREFIX.to_owned();
    for byte in Sha256::digest(data) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}
