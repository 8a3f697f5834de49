//! The vocabulary and the ports of Tidegate.
//!
//! This crate says what things are; it opens no socket, holds no file and knows no driver.

pub mod code;
pub mod error;

pub use error::{Error, Result};
