//! Positions in the server's log.
//!
//! A position is a cluster time (64 bits, big endian: seconds, then a counter), and behind it the text of a resume
//! token if it is a place between two changes of a stream.
//!
//! - `T` alone: every change before the time T has been delivered, none of T itself need have been.
//! - `T` and a token: every change up to that token has been delivered. Tokens of later changes are greater texts,
//!   and each begins with its own time.
//!
//! A read at the time T shows the changes up to T and no others; its barrier is the position `T + 1`. A feed passes
//! it with a change, or a token of the idle stream, of a later time than T, and never with a change of T itself,
//! behind which others of T may come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mongodb::Database;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Document, RawBsonRef, RawDocument, Timestamp, doc};
use mongodb::change_stream::event::ResumeToken;
use tidegate_core::error::{Verdict, code};
use tidegate_core::{AsOf, Error, Position, Result};

use crate::error::During;

/// A document that is written to make an idle stream move.
const MARKER: &str = "tidegate.marker";

/// A cluster time as a number that compares as it does.
pub(crate) fn number(time: Timestamp) -> u64 {
    u64::from(time.time) << 32 | u64::from(time.increment)
}

fn time(number: u64) -> Timestamp {
    let [seconds, increment] =
        [number >> 32, number & u64::from(u32::MAX)].map(|n| u32::try_from(n).unwrap_or(0));
    Timestamp { time: seconds, increment }
}

/// The proof that a read was at this time.
pub(crate) fn instant(read_at: Timestamp) -> AsOf {
    let upper = number(read_at) + 1;
    AsOf { barrier: Position::from_u64(upper), upper, in_flight: Vec::new() }
}

/// The place behind a token.
pub(crate) fn behind(time: u64, token: &str) -> Position {
    Position::new([&time.to_be_bytes(), token.as_bytes()].concat())
}

/// The latest time that a read of this store was at. A server that has just become primary may not know yet what a
/// majority has, and read at an earlier time than the one before it: a crawl that had begun would miss what is between.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floor(Arc<AtomicU64>);

impl Floor {
    /// The time below which a read that begins now is not to be.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Takes in the time of a read that began when the floor was there.
    ///
    /// # Errors
    /// `store-failed`, to be tried again, if the read was at an earlier time.
    pub(crate) fn pass(&self, floor: u64, read_at: Timestamp) -> Result<()> {
        let read_at = number(read_at);
        if read_at < floor {
            return Err(Error::new(code::STORE_FAILED, "the server reads at an earlier time than before")
                .verdict_is(Verdict::Retry)
                .hint("another member has become primary; it catches up by itself"));
        }
        self.0.fetch_max(read_at, Ordering::AcqRel);
        Ok(())
    }
}

/// Where a stream has to be opened for a position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum From<'a> {
    /// At the first change of this time or later.
    Time(Timestamp),
    /// Behind this token.
    Token(&'a str),
}

/// Reads a position.
pub(crate) fn read(position: &Position) -> Result<From<'_>> {
    let malformed = || Error::new(code::STREAM_MALFORMED, "a position is not one of MongoDB's");
    let (first, token) = position.bytes().split_first_chunk::<8>().ok_or_else(malformed)?;
    if token.is_empty() {
        return Ok(From::Time(time(u64::from_be_bytes(*first))));
    }
    std::str::from_utf8(token).map(From::Token).map_err(|_| malformed())
}

/// The seconds since 1970 that a position begins with.
pub(crate) fn seconds(position: &Position) -> Result<f64> {
    let first = position.bytes().first_chunk::<4>();
    first
        .map(|first| f64::from(u32::from_be_bytes(*first)))
        .ok_or_else(|| Error::new(code::STREAM_MALFORMED, "a position is not one of MongoDB's"))
}

/// What stands between a token's place and the types of its values: less than any digit, so that texts compare as places do.
const TYPES: char = '.';

/// The text of a token: its place, and behind a dot the types of the values in it, where it has them. Without these the
/// server does not know a place at a number that is no small integer again.
pub(crate) fn text_of(token: &ResumeToken) -> Result<String> {
    let malformed = || Error::new(code::STREAM_MALFORMED, "a resume token has no text");
    let token = mongodb::bson::serialize_to_raw_document_buf(token).map_err(|e| malformed().because(e))?;
    text_of_raw(&token).map_err(|e| malformed().because(e))
}

/// The same of a token as it comes with a change.
pub(crate) fn text_of_raw(token: &RawDocument) -> mongodb::bson::error::Result<String> {
    let mut text = token.get_str("_data")?.to_owned();
    if let Some(RawBsonRef::Binary(types)) = token.get("_typeBits")? {
        text.push(TYPES);
        types.bytes.iter().for_each(|byte| text.push_str(&format!("{byte:02X}")));
    }
    Ok(text)
}

/// The token of a text.
pub(crate) fn token_of(text: &str) -> Result<ResumeToken> {
    let malformed = || Error::new(code::STREAM_MALFORMED, "a resume token cannot be made");
    let (place, types) = text.split_once(TYPES).unwrap_or((text, ""));
    let mut token = doc! { "_data": place };
    if !types.is_empty() {
        let pairs = types
            .as_bytes()
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
        let bytes = pairs.collect::<Option<Vec<u8>>>().ok_or_else(malformed)?;
        token.insert("_typeBits", Binary { subtype: BinarySubtype::Generic, bytes });
    }
    mongodb::bson::deserialize_from_document(token).map_err(|e| malformed().because(e))
}

/// The time that a token begins with: one byte for its kind, then seconds and counter, in hexadecimal.
pub(crate) fn time_of(token: &str) -> Result<u64> {
    let digits = token.strip_prefix("82").and_then(|rest| rest.get(..16));
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| Error::new(code::STREAM_MALFORMED, "a resume token does not begin with a time"))
}

/// The time of a read of what a majority has.
pub(crate) async fn read_time(database: &Database) -> Result<Timestamp> {
    if let Some(time) = snapshot_time(database).await? {
        return Ok(time);
    }
    // A read of a collection that is not there has no time.
    mark(database).await?;
    snapshot_time(database)
        .await?
        .ok_or_else(|| Error::new(code::INTERNAL, "the server does not say when a read was"))
}

async fn snapshot_time(database: &Database) -> Result<Option<Timestamp>> {
    let mut session = database.client().start_session().snapshot(true).await.during("start a session")?;
    let command = doc! { "find": MARKER, "limit": 1 };
    database.run_cursor_command(command).session(&mut session).await.during("ask for the time")?;
    Ok(session.snapshot_time())
}

/// The position from which on changes are new to whoever reads now.
pub(crate) async fn now(database: &Database, floor: &Floor) -> Result<Position> {
    let before = floor.now();
    let read_at = read_time(database).await?;
    floor.pass(before, read_at)?;
    Ok(instant(read_at).barrier)
}

/// Writes a change of ours, so that the stream moves past everything before it.
pub(crate) async fn mark(database: &Database) -> Result<()> {
    database
        .collection::<Document>(MARKER)
        .update_one(doc! { "_id": "marker" }, doc! { "$inc": { "written": 1_i64 } })
        .upsert(true)
        .await
        .during("write the marker")?;
    Ok(())
}

/// Removes what [`mark`] made.
pub(crate) async fn forget_marker(database: &Database) -> Result<()> {
    database.collection::<Document>(MARKER).drop().await.during("remove the marker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_not_before_one_that_had_ended_when_it_began() {
        let at = |seconds| Timestamp { time: seconds, increment: 1 };
        let floor = Floor::default();
        let early = floor.now();
        floor.pass(floor.now(), at(7)).unwrap();
        let error = floor.pass(floor.now(), at(6)).unwrap_err();
        assert_eq!((error.code(), error.verdict()), (code::STORE_FAILED, Verdict::Retry));
        // One that began earlier may be anywhere, and does not take the floor down.
        floor.pass(early, at(6)).unwrap();
        assert_eq!(floor.now(), number(at(7)));
        floor.clone().pass(floor.now(), at(8)).unwrap();
        assert_eq!(floor.now(), number(at(8)), "one floor for all who read the store");
    }

    #[test]
    fn a_barrier_is_passed_by_what_is_later_than_the_read_and_by_nothing_else() {
        let at = |seconds, increment| Timestamp { time: seconds, increment };
        let token =
            |seconds: u32, increment: u32, rest: &str| format!("82{seconds:08X}{increment:08X}{rest}");
        let barrier = instant(at(7, 3)).barrier;
        for (seconds, increment, passes) in [(7, 2, false), (7, 3, false), (7, 4, true), (8, 0, true)] {
            for rest in ["2B022C0100296E04", "FFFF"] {
                let token = token(seconds, increment, rest);
                let time = time_of(&token).unwrap();
                assert_eq!(time, number(at(seconds, increment)));
                assert_eq!(behind(time, &token) >= barrier, passes, "{token}");
            }
        }
        assert_eq!(read(&barrier).unwrap(), From::Time(at(7, 4)));
        assert_eq!(read(&behind(5, "82AB")).unwrap(), From::Token("82AB"));
        for text in ["82AB", "82AB.00FF"] {
            assert_eq!(text_of(&token_of(text).unwrap()).unwrap(), text);
        }
        assert!(behind(5, "82AB.00FF") < behind(5, "82AB00") && behind(5, "82AB.00FF") > behind(5, "82AB"));
        assert!(read(&Position::default()).is_err());
    }
}
