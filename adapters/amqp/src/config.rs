//! What a URL says.

use tidegate_core::error::code;
use tidegate_core::queue::Access;
use tidegate_core::{Endpoint, Error, Result};

use crate::server::Server;

/// Where the server is, and how to talk to it.
pub(crate) fn access(server: Server, endpoint: &Endpoint) -> Result<Access> {
    let scheme = server.scheme();
    let own: &[&'static str] = match server {
        Server::Artemis => &[],
        Server::Classic => &["openwire"],
    };
    let access = Access::of(endpoint, scheme, own)?;
    if !access.path.is_empty() {
        return Err(Error::new(code::URL_INVALID, format!("a URL of {scheme} has no path"))
            .hint("channels are named where they are used"));
    }
    if let Some(port) = access.own.get("openwire")
        && port.parse::<u16>().is_err()
    {
        return Err(Error::new(code::URL_INVALID, format!("openwire={port} is no port")));
    }
    Ok(access)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_no_path() {
        let access = |url: &str| {
            let endpoint = Endpoint::parse(url).unwrap();
            super::access(Server::of(endpoint.scheme()), &endpoint)
        };
        assert!(access("artemiss://h/").unwrap().has_tls && !access("artemis://h").unwrap().has_tls);
        let error = access("artemis://h/orders").unwrap_err();
        assert!(error.code() == code::URL_INVALID && error.message().contains("no path"), "{error}");
        let classic = access("activemqs://h?openwire=61617").unwrap();
        assert!(classic.has_tls && classic.own["openwire"] == "61617");
        for (url, named) in [("activemq://h?openwire=many", "many"), ("artemis://h?openwire=1", "openwire")] {
            let error = access(url).unwrap_err();
            assert!(error.code() == code::URL_INVALID && error.message().contains(named), "{error}");
        }
    }
}
