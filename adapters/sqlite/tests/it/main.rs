//! The adapter on real files.

mod capture;
mod catalog;
mod crawl;
mod engine;
mod file;
mod sink;
mod state;
