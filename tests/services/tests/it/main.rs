//! Real servers: started, killed, started again.

#[cfg(test)]
mod broker;
#[cfg(test)]
mod mongodb;
#[cfg(test)]
mod postgres;
