//! The adapter on real files.

#[cfg(test)]
mod broker;
#[cfg(test)]
mod capture;
#[cfg(test)]
mod catalog;
#[cfg(test)]
mod crawl;
#[cfg(test)]
mod engine;
#[cfg(test)]
mod file;
#[cfg(test)]
mod sink;
#[cfg(test)]
mod state;
