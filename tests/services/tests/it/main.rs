//! Real servers: started, killed, started again.

#[cfg(test)]
mod mongodb;
#[cfg(test)]
mod postgres;
