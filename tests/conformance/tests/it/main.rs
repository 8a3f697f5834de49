//! The suite itself: it finds what it is to find.

#[cfg(test)]
mod hooks;
#[cfg(test)]
mod log;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod plant;
mod queue;
#[cfg(test)]
mod timers;
