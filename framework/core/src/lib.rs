//! The vocabulary and the ports of Tidegate.
//!
//! This crate says what things are; it opens no socket, holds no file and knows no driver. An adapter depends on it
//! alone. Start with [`port`]: what an adapter implements.

pub mod capability;
pub mod changes;
pub mod channel;
pub mod clock;
pub mod code;
pub mod endpoint;
pub mod error;
pub mod flow;
pub mod ids;
pub mod lane;
pub mod message;
pub mod port;
pub mod position;
pub mod rows;
pub mod scope;
pub mod structured;
pub mod table;
pub mod text;
pub mod value;

pub use capability::{Capabilities, How, LossCase, LossEvent};
pub use changes::{Change, Changes, Op, Transaction};
pub use channel::{Apply, Channel, Difference, Keep, Name, Start, Subscription, Topology};
pub use clock::{Clock, SystemClock};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use flow::FlowName;
pub use ids::{Ids, SystemIds};
pub use lane::Lane;
pub use message::{Headers, Message};
pub use position::{AsOf, Mark, Position};
pub use rows::{Cell, Key, Row, RowWriter, Rows};
pub use scope::Scope;
pub use table::{Canonical, Codec, Column, Encoding, Shape, Table, TableName};
pub use value::{Type, Value};
