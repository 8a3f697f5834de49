//! The works, as the table of speeds names them.

pub mod crawl;
pub mod drain;
