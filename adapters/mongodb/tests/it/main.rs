//! The adapter on a real server.

#[cfg(test)]
mod applying;
#[cfg(test)]
mod engine;
mod failing;
#[cfg(test)]
mod holes;
#[cfg(test)]
mod place;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod records;
#[cfg(test)]
mod replaced;
#[cfg(test)]
mod zombies;
