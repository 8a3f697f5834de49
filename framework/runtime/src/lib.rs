//! The delivery runtime: what stands between a broker's ports and whoever has something to say.
//!
//! A broker answers *unknown* and refuses for a while; consumers lose lanes. [`Publisher`] publishes until every
//! message is stored, [`Receiver`] gives messages one by one, in their order.

mod publisher;
mod receiver;

pub use publisher::Publisher;
pub use receiver::Receiver;
