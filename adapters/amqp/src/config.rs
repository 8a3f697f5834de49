//! What a URL says.

use tidegate_core::error::code;
use tidegate_core::queue::Access;
use tidegate_core::{Endpoint, Error, Result};

/// Where the server is, and how to talk to it.
pub(crate) fn access(endpoint: &Endpoint) -> Result<Access> {
    let access = Access::of(endpoint, "artemis", &[])?;
    if !access.path.is_empty() {
        return Err(Error::new(code::URL_INVALID, "a URL of artemis has no path")
            .hint("channels are named where they are used"));
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_no_path() {
        let access = |url: &str| super::access(&Endpoint::parse(url).unwrap());
        assert!(access("artemiss://h/").unwrap().has_tls && !access("artemis://h").unwrap().has_tls);
        let error = access("artemis://h/orders").unwrap_err();
        assert!(error.code() == code::URL_INVALID && error.message().contains("no path"), "{error}");
    }
}
