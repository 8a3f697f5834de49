//! The name of a flow: one migration or synchronisation.

use std::fmt;

use crate::error::{Error, Result, code};

/// The name of a flow. It names things in stores (slots, triggers, state), so it is short and plain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FlowName(String);

impl FlowName {
    /// Checks a name: 1 to 40 of `a–z 0–9 _`, starting with a letter.
    ///
    /// # Errors
    /// `config-invalid` otherwise.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if plain && name.len() <= 40 && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Ok(Self(name));
        }
        Err(Error::new(code::CONFIG_INVALID, format!("the name {name:?} cannot be used"))
            .hint("a name is 1 to 40 of a-z, 0-9 and _, starting with a letter: --name shop"))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FlowName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<FlowName> for String {
    fn from(name: FlowName) -> Self {
        name.0
    }
}

impl fmt::Display for FlowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FlowName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
