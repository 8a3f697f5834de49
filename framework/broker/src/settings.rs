//! What a URL says of the broker behind it.

use std::time::Duration;

use tidegate_core::error::{Error, Result, code};

/// How long things take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a member that is not heard of keeps its lanes.
    pub lease: Duration,
    /// How long a consumer that is asked for a lane may finish what it has in hand.
    pub grace: Duration,
    /// How long publishing waits for room.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            patience: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Takes `lease_ms`, `grace_ms` or `patience_ms`; whether it was one of them.
    ///
    /// # Errors
    /// `url-invalid` if the value is no number of milliseconds.
    pub fn take(&mut self, name: &str, value: &str) -> Result<bool> {
        let setting = match name {
            "lease_ms" => &mut self.lease,
            "grace_ms" => &mut self.grace,
            "patience_ms" => &mut self.patience,
            _ => return Ok(false),
        };
        match value.parse() {
            Ok(0) if name == "lease_ms" => {}
            Ok(millis) => {
                *setting = Duration::from_millis(millis);
                return Ok(true);
            }
            Err(_) => {}
        }
        Err(Error::new(code::URL_INVALID, format!("{name}={value} is no number of milliseconds")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds() {
        let mut settings = Settings::default();
        assert!(settings.take("lease_ms", "1500").unwrap() && settings.take("patience_ms", "0").unwrap());
        assert_eq!((settings.lease, settings.patience), (Duration::from_millis(1_500), Duration::ZERO));
        assert!(!settings.take("lease", "1").unwrap());
        for (name, value) in [("lease_ms", "0"), ("grace_ms", "x"), ("grace_ms", "-1")] {
            assert_eq!(settings.take(name, value).unwrap_err().code(), code::URL_INVALID, "{name}={value}");
        }
    }
}
