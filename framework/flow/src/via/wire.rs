//! Calls and replies as messages.
//!
//! A body is the length of its head (32 bits, big endian), the head as JSON, and the frames of its rows as they are.
//! It is cut into parts that the broker carries. A part's headers say which session and number it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tidegate_core::error::code;
use tidegate_core::port::{
    Applied, Batch, Checkpoint, Commit, Delivery, Identity, Opened, TableBatch, Token,
};
use tidegate_core::{Error, FlowName, Message, Result, Rows, Table};

/// The largest part, however much the broker would carry.
const PART_BYTES: usize = 1 << 20;
/// What attributes and headers take at most.
const OVERHEAD_BYTES: usize = 4 << 10;

/// The type of a call's message.
pub(super) const CALL: &str = "tidegate.call.v1";
/// The type of a reply's message.
pub(super) const REPLY: &str = "tidegate.reply.v1";

/// A route as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CarriedRoute {
    /// The table of the source.
    pub(super) source: Table,
    /// The name of the encoding in which its rows come.
    pub(super) encoding: String,
    /// The columns whose cells are canonical values instead.
    pub(super) computed: BTreeSet<String>,
    /// The table of the target.
    pub(super) target: Table,
}

/// What is asked of the target's side. The first of a session is `Open`.
#[derive(Debug)]
pub(super) enum Call {
    /// With who the target is, as far as the source's end can tell.
    Open {
        target: Option<Identity>,
        routes: Vec<CarriedRoute>,
        first: Checkpoint,
    },
    Apply {
        batch: Batch,
        commit: Option<Commit>,
    },
    Close,
}

#[derive(Serialize, Deserialize)]
enum Head {
    Open { target: Option<Identity>, routes: Vec<CarriedRoute>, first: Checkpoint },
    Apply { tables: Vec<TableHead>, commit: Option<Commit> },
    Close,
}

/// A table's work: its rows stand in the body, in the order of these lengths.
#[derive(Serialize, Deserialize)]
struct TableHead {
    table: usize,
    truncate: bool,
    fresh: bool,
    #[serde(default)]
    crawling: bool,
    deletes: usize,
    upserts: usize,
    updates: usize,
}

impl Call {
    pub(super) fn encode(self) -> Result<Bytes> {
        match self {
            Self::Open { target, routes, first } => body(&Head::Open { target, routes, first }, &[]),
            Self::Apply { batch, commit } => {
                let heads = batch.tables.iter().map(|part| TableHead {
                    table: part.table,
                    truncate: part.truncate,
                    fresh: part.fresh,
                    crawling: part.crawling,
                    deletes: part.deletes.bytes().len(),
                    upserts: part.upserts.bytes().len(),
                    updates: part.updates.bytes().len(),
                });
                let head = Head::Apply { tables: heads.collect(), commit };
                let rows = batch.tables.iter().flat_map(|part| [&part.deletes, &part.upserts, &part.updates]);
                body(&head, &rows.collect::<Vec<_>>())
            }
            Self::Close => body(&Head::Close, &[]),
        }
    }

    pub(super) fn decode(mut body: Bytes) -> Result<Self> {
        Ok(match head(&mut body)? {
            Head::Open { target, routes, first } => Self::Open { target, routes, first },
            Head::Close => Self::Close,
            Head::Apply { tables, commit } => {
                let mut take = |length: usize| {
                    if length > body.len() {
                        return Err(malformed("the rows of a call end early"));
                    }
                    Rows::parse(body.split_to(length).into())
                };
                let tables = tables.into_iter().map(|head| {
                    Ok(TableBatch {
                        table: head.table,
                        truncate: head.truncate,
                        deletes: take(head.deletes)?,
                        upserts: take(head.upserts)?,
                        updates: take(head.updates)?,
                        fresh: head.fresh,
                        crawling: head.crawling,
                    })
                });
                Self::Apply { batch: Batch { tables: tables.collect::<Result<_>>()? }, commit }
            }
        })
    }
}

/// What the target's side answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It is at work; the answer follows.
    Working,
    /// What opening found, and the session that the calls after it are to name.
    Opened {
        opened: Opened,
        session: String,
    },
    Applied(Applied),
    Closed,
    Failed(Error),
    /// It does not know the session: it began after it was opened.
    Unknown,
}

impl Reply {
    pub(super) fn encode(&self) -> Result<Bytes> {
        body(self, &[])
    }

    pub(super) fn decode(mut body: Bytes) -> Result<Self> {
        head(&mut body)
    }
}

fn body(head: &impl Serialize, rows: &[&Rows]) -> Result<Bytes> {
    let head = serde_json::to_vec(head)
        .map_err(|e| Error::new(code::INTERNAL, "the head of a message cannot be written").because(e))?;
    let length = u32::try_from(head.len())
        .map_err(|_| Error::new(code::BODY_TOO_LARGE, "the head of a message is larger than 4 GiB"))?;
    let all = rows.iter().map(|rows| rows.bytes().len()).sum::<usize>();
    let mut out = BytesMut::with_capacity(4 + head.len() + all);
    out.put_u32(length);
    out.put_slice(&head);
    rows.iter().for_each(|rows| out.put_slice(rows.bytes()));
    Ok(out.freeze())
}

fn head<T: serde::de::DeserializeOwned>(body: &mut Bytes) -> Result<T> {
    let length = body.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
    let Some(length) = length.filter(|length| *length <= body.len() - 4) else {
        return Err(malformed("a message is shorter than its head"));
    };
    let _ = body.split_to(4);
    serde_json::from_slice(&body.split_to(length))
        .map_err(|e| malformed("the head of a message cannot be read").because(e))
}

fn malformed(what: &'static str) -> Error {
    Error::new(code::MESSAGE_INVALID, what).hint(
        "both ends have to be of the same version of tidegate; nobody else may publish on these channels",
    )
}

/// Which call something belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) session: Arc<str>,
    pub(super) number: u64,
}

/// Cuts a body into messages that a broker carries. What is said of one call has one serial each.
pub(super) fn messages(
    kind: &'static str,
    flow: &FlowName,
    place: &Place,
    serial: &str,
    mut body: Bytes,
    message_bytes_max: usize,
) -> Result<Vec<Message>> {
    let size = message_bytes_max.saturating_sub(OVERHEAD_BYTES).clamp(1, PART_BYTES);
    let parts = body.len().div_ceil(size);
    let message = |part: usize| {
        let id = format!("{}-{}-{serial}-{part}", place.session, place.number);
        Message::with_id(id, format!("tidegate/{flow}"), kind)
            .with_subject(flow.as_str())
            .with_data("application/octet-stream", body.split_to(size.min(body.len())))
            .with_header("session", Arc::clone(&place.session))?
            .with_header("number", place.number.to_string())?
            .with_header("serial", serial.to_owned())?
            .with_header("part", part.to_string())?
            .with_header("parts", parts.to_string())
    };
    (0..parts).map(message).collect()
}

/// Puts parts together again. One body is on its way at a time: the part of another one means that the one before
/// was given up.
#[derive(Debug, Default)]
pub(super) struct Parts {
    of: Option<(Place, String)>,
    parts: BTreeMap<usize, Bytes>,
    tokens: Vec<Token>,
}

/// A whole body.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) place: Place,
    pub(super) body: Bytes,
}

impl Parts {
    /// Takes a part; gives the body it completes. Its message is settled by [`Parts::tokens`].
    pub(super) fn take(&mut self, delivery: Delivery) -> Result<Option<Whole>> {
        self.tokens.push(delivery.token);
        let header = |name: &str| {
            delivery
                .message
                .headers
                .get(name)
                .ok_or_else(|| malformed("a message lacks a header").with("header", name.to_owned()))
        };
        let number = |name: &str| {
            header(name)?.parse::<u64>().map_err(|e| malformed("a header is no number").because(e))
        };
        let place = Place { session: header("session")?.into(), number: number("number")? };
        let of = Some((place.clone(), header("serial")?.to_string()));
        if self.of != of {
            self.of = of;
            self.parts.clear();
        }
        let (part, parts) = (number("part")?, number("parts")?);
        self.parts.insert(usize::try_from(part).unwrap_or(usize::MAX), delivery.message.data.clone());
        if self.parts.len() as u64 != parts {
            return Ok(None);
        }
        self.of = None;
        let mut parts = std::mem::take(&mut self.parts).into_values();
        let body = match (parts.len(), parts.next()) {
            (1, Some(only)) => only,
            (_, first) => {
                let mut body = BytesMut::new();
                first.into_iter().chain(parts).for_each(|part| body.extend_from_slice(&part));
                body.freeze()
            }
        };
        Ok(Some(Whole { place, body }))
    }

    /// The messages taken since this was asked last.
    pub(super) fn tokens(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.tokens)
    }
}
