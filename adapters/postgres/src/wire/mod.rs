//! A thin client for the replication protocol.
//!
//! ```text
//!   Replication::connect ── query / identify ────────────────┐
//!                                                            │ start (consumes the session)
//!   caller ── report(write, flush, apply) ──►  WalStream  ◄──┘
//!          ◄── Data / Keepalive ───────────        │
//!                                                  └── finish: CopyDone both ways, then closed
//! ```
//!
//! It acknowledges nothing by itself: every position the server hears comes from [`WalStream::report`]. A server
//! ends a second stream on the same session at once, so that each start takes a connection of its own.

mod frame;
pub(crate) mod gulp;
mod session;
mod startup;
mod stream;

pub(crate) use session::{Replication, Start};
pub(crate) use stream::{Progress, WalFrame, WalStream};
