//! Records of the topic of documents, and what follows from them in their order.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use tidegate_broker::log::Document;
use tidegate_core::error::code;
use tidegate_core::{Error, Result};

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A document is to be this, or not to be there, if it is still what is expected.
    Write {
        name: String,
        value: Option<Bytes>,
        expected: Expected,
        /// Whoever wrote it knows it again.
        by: u64,
    },
    /// All documents, as they follow from every record before this offset.
    Snapshot { before: i64, documents: BTreeMap<String, Document> },
}

/// What a writing expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Anything,
    Nothing,
    Revision(u64),
}

const WHAT: &str = "tg_what";
const EXPECTED: &str = "tg_expected";
const BY: &str = "tg_by";

impl Record {
    /// Its key, its value and its headers.
    pub(crate) fn encode(&self) -> (&str, Option<Bytes>, OwnedHeaders) {
        let header =
            |headers: OwnedHeaders, key, value: &str| headers.insert(Header { key, value: Some(value) });
        match self {
            Record::Write { name, value, expected, by } => {
                let headers =
                    header(OwnedHeaders::new(), WHAT, if value.is_some() { "write" } else { "remove" });
                let headers = header(headers, BY, &by.to_string());
                let headers = match expected {
                    Expected::Anything => headers,
                    Expected::Nothing => header(headers, EXPECTED, "nothing"),
                    Expected::Revision(revision) => header(headers, EXPECTED, &revision.to_string()),
                };
                (name, value.clone(), headers)
            }
            Record::Snapshot { before, documents } => {
                let mut value = BytesMut::new();
                value.put_i64(*before);
                for (name, document) in documents {
                    for part in [name.as_bytes(), &document.value] {
                        // A record is smaller than this.
                        value.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
                        value.put_slice(part);
                    }
                    value.put_u64(document.revision);
                }
                ("", Some(value.freeze()), header(OwnedHeaders::new(), WHAT, "snapshot"))
            }
        }
    }

    /// # Errors
    /// `stream-malformed` if it is none of ours.
    pub(crate) fn decode(record: &impl rdkafka::Message) -> Result<Self> {
        let malformed = || {
            let text = format!("the record {} of {} is no document", record.offset(), record.topic());
            Error::new(code::STREAM_MALFORMED, text)
        };
        let header = |name: &str| {
            let all = record.headers().into_iter().flat_map(|headers| headers.iter());
            let value = all.filter(|header| header.key == name).find_map(|header| header.value);
            value.and_then(|value| std::str::from_utf8(value).ok())
        };
        let value = record.payload().map(Bytes::copy_from_slice);
        let what = header(WHAT).ok_or_else(malformed)?;
        if what == "snapshot" {
            return snapshot(value.unwrap_or_default()).ok_or_else(malformed);
        }
        let name =
            record.key().and_then(|key| std::str::from_utf8(key).ok()).ok_or_else(malformed)?.to_owned();
        let by = header(BY).and_then(|by| by.parse().ok()).ok_or_else(malformed)?;
        let expected = match header(EXPECTED) {
            None => Expected::Anything,
            Some("nothing") => Expected::Nothing,
            Some(revision) => Expected::Revision(revision.parse().map_err(|_| malformed())?),
        };
        match (what, value) {
            ("write", Some(value)) => Ok(Record::Write { name, value: Some(value), expected, by }),
            ("remove", _) => Ok(Record::Write { name, value: None, expected, by }),
            _ => Err(malformed()),
        }
    }
}

fn snapshot(mut from: Bytes) -> Option<Record> {
    fn part(from: &mut Bytes) -> Option<Bytes> {
        let length = from.try_get_u32().ok()? as usize;
        (from.len() >= length).then(|| from.split_to(length))
    }
    let before = from.try_get_i64().ok()?;
    let mut documents = BTreeMap::new();
    while !from.is_empty() {
        let name = String::from_utf8(part(&mut from)?.to_vec()).ok()?;
        let value = part(&mut from)?;
        documents.insert(name, Document { value, revision: from.try_get_u64().ok()? });
    }
    Some(Record::Snapshot { before, documents })
}

/// What follows from the records that were read.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) documents: BTreeMap<String, Document>,
    /// Everything before this offset was read.
    pub(crate) next: i64,
    /// The first offset that is there.
    first: i64,
    /// Records that wait for the snapshot which they stand on; `None` once there is one, or none is needed.
    held: Option<Vec<(i64, Record)>>,
    /// Up to where the last snapshot goes, and how many bytes were read behind it.
    snapshot: i64,
    bytes: usize,
}

/// How a writing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) by: u64,
    /// The document's revision, if it is as it was to be.
    pub(crate) revision: Option<u64>,
}

impl State {
    /// Knows nothing of a topic that begins with this offset.
    pub(crate) fn new(first: i64) -> Self {
        let held = (first > 0).then(Vec::new);
        Self { documents: BTreeMap::new(), next: first, first, held, snapshot: first, bytes: 0 }
    }

    /// Whether what stands here is all that follows from what was read.
    pub(crate) fn is_whole(&self) -> bool {
        self.held.is_none()
    }

    /// A document as it is behind every record before `end`; `None` if it is not known yet, since not all of them were read.
    pub(crate) fn document(&self, name: &str, end: i64) -> Option<Option<&Document>> {
        (self.is_whole() && self.next >= end).then(|| self.documents.get(name))
    }

    /// Takes the next record; `None` is one that is not ours. How writings ended that are decided by it.
    pub(crate) fn take(&mut self, offset: i64, record: Option<Record>) -> Vec<Verdict> {
        self.next = offset + 1;
        match (record, &mut self.held) {
            (None, _) => Vec::new(),
            (Some(Record::Snapshot { before, documents }), held) if before >= self.first => {
                self.snapshot = self.snapshot.max(before);
                self.bytes = 0;
                let Some(held) = held.take() else { return Vec::new() };
                self.documents = documents;
                let behind = held.into_iter().filter(|(offset, _)| *offset >= before);
                behind.filter_map(|(offset, record)| self.decide(offset, record)).collect()
            }
            (Some(Record::Snapshot { .. }), _) => Vec::new(),
            (Some(record), Some(held)) => {
                held.push((offset, record));
                Vec::new()
            }
            (Some(record), None) => self.decide(offset, record).into_iter().collect(),
        }
    }

    fn decide(&mut self, offset: i64, record: Record) -> Option<Verdict> {
        let Record::Write { name, value, expected, by } = record else { return None };
        self.bytes += value.as_ref().map_or(0, Bytes::len);
        if !self.is_expected(&name, expected) {
            return Some(Verdict { by, revision: None });
        }
        let revision = offset.cast_unsigned() + 1;
        match value {
            Some(value) => _ = self.documents.insert(name, Document { value, revision }),
            None => _ = self.documents.remove(&name),
        }
        Some(Verdict { by, revision: Some(revision) })
    }

    pub(crate) fn is_expected(&self, name: &str, expected: Expected) -> bool {
        let found = self.documents.get(name).map(|document| document.revision);
        match expected {
            Expected::Anything => true,
            Expected::Nothing => found.is_none(),
            Expected::Revision(revision) => found == Some(revision),
        }
    }

    /// A snapshot up to there is on its way.
    pub(crate) fn hold_snapshots(&mut self, before: i64) {
        (self.snapshot, self.bytes) = (self.snapshot.max(before), 0);
    }

    /// A snapshot, if so many records or bytes stand behind the last one.
    pub(crate) fn snapshot_after(&self, records: i64, bytes: usize) -> Option<Record> {
        let is_due = self.is_whole() && (self.next - self.snapshot > records || self.bytes > bytes);
        is_due.then(|| Record::Snapshot { before: self.next, documents: self.documents.clone() })
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    fn write(name: &str, value: Option<&'static str>, expected: Expected, by: u64) -> Record {
        Record::Write {
            name: name.to_owned(),
            value: value.map(|v| Bytes::from_static(v.as_bytes())),
            expected,
            by,
        }
    }

    fn read_back(record: &Record) -> Record {
        let (key, value, headers) = record.encode();
        let (key, value) = (key.as_bytes().to_vec(), value.map(|value| value.to_vec()));
        let message =
            OwnedMessage::new(value, Some(key), "t".to_owned(), Timestamp::NotAvailable, 0, 0, Some(headers));
        Record::decode(&message).unwrap()
    }

    #[test]
    fn records_are_read_back() {
        let document = Document { value: Bytes::from_static(b"\xff{}"), revision: 9 };
        for record in [
            write("channel", Some("{}"), Expected::Nothing, 1),
            write("lane.1.2", Some(""), Expected::Revision(70), u64::MAX),
            write("lane.1.2", None, Expected::Anything, 3),
            Record::Snapshot { before: 5, documents: BTreeMap::new() },
            Record::Snapshot { before: 5, documents: [("a".to_owned(), document)].into() },
        ] {
            assert_eq!(read_back(&record), record);
        }
        let foreign = OwnedMessage::new(None, None, "t".to_owned(), Timestamp::NotAvailable, 0, 0, None);
        assert_eq!(Record::decode(&foreign).unwrap_err().code(), code::STREAM_MALFORMED);
    }

    #[test]
    fn of_two_who_expect_the_same_the_first_one_wins() {
        let mut state = State::new(0);
        let verdict = |by, revision| vec![Verdict { by, revision }];
        assert_eq!(state.take(0, Some(write("a", Some("x"), Expected::Nothing, 1))), verdict(1, Some(1)));
        assert_eq!(state.take(1, Some(write("a", Some("y"), Expected::Revision(1), 2))), verdict(2, Some(2)));
        assert_eq!(state.take(2, Some(write("a", Some("z"), Expected::Revision(1), 3))), verdict(3, None));
        assert_eq!(state.take(3, None), []);
        assert_eq!(&state.documents["a"].value[..], b"y");
        assert_eq!(state.take(4, Some(write("a", None, Expected::Anything, 4))), verdict(4, Some(5)));
        assert!(state.documents.is_empty() && state.next == 5);
    }

    #[test]
    fn what_is_not_read_yet_is_not_taken_for_missing() {
        let mut state = State::new(0);
        assert_eq!((state.document("a", 0), state.document("a", 1)), (Some(None), None));
        state.take(0, Some(write("a", Some("x"), Expected::Nothing, 1)));
        assert!(state.document("a", 1).is_some_and(|found| found.is_some()));
        assert_eq!((state.document("b", 1), state.document("a", 2)), (Some(None), None));
        let snapshot = state.snapshot_after(0, 0).unwrap();
        // It begins behind what is removed: without the snapshot it knows nothing, wherever it has read to.
        let mut state = State::new(1);
        assert_eq!(state.document("a", 1), None);
        state.take(1, Some(write("b", Some("y"), Expected::Nothing, 2)));
        assert_eq!(state.document("a", 2), None);
        state.take(2, Some(snapshot));
        assert!(state.document("a", 3).is_some_and(|found| found.is_some()));
        assert!(state.document("b", 3).is_some_and(|found| found.is_some()));
    }

    /// Whoever begins behind a snapshot's place comes to the same documents, with snapshots that others wrote meanwhile.
    #[test]
    fn whoever_begins_later_comes_to_the_same() {
        let mut records = Vec::new();
        let mut state = State::new(0);
        let take = |state: &mut State, records: &mut Vec<Record>, record: Record| {
            let verdicts = state.take(i64::try_from(records.len()).unwrap(), Some(record.clone()));
            records.push(record);
            verdicts
        };
        let mut revision = None;
        let mut early = None;
        for number in 0..20 {
            let expected = revision.map_or(Expected::Nothing, Expected::Revision);
            let verdicts = take(&mut state, &mut records, write("a", Some("v"), expected, number));
            revision = verdicts[0].revision;
            take(&mut state, &mut records, write("a", Some("stale"), Expected::Revision(1), 100 + number));
            if number == 5 {
                early = state.snapshot_after(0, 0);
            }
        }
        let late = state.snapshot_after(0, 0).unwrap();
        take(&mut state, &mut records, early.unwrap());
        take(&mut state, &mut records, write("b", Some("w"), Expected::Nothing, 50));
        assert!(state.snapshot_after(3, usize::MAX).is_some());
        take(&mut state, &mut records, late);
        take(&mut state, &mut records, write("b", None, Expected::Revision(42), 51));
        for first in [0, 12, 13, 30, 40] {
            let mut other = State::new(first);
            for (offset, record) in (0..).zip(&records).filter(|(offset, _)| *offset >= first) {
                other.take(offset, Some(record.clone()));
            }
            assert!(other.is_whole(), "from {first}");
            assert_eq!(other.documents, state.documents, "from {first}");
        }
    }
}
