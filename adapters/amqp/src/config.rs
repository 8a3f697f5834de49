//! What a URL says.

use std::time::Duration;

use tidegate_broker::access::{Access, Scheme};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

use crate::connect::tls;
use crate::server::Server;

/// Where the server is, and how to talk to it.
pub(crate) fn access(server: Server, endpoint: &Endpoint) -> Result<Access> {
    let own: &'static [&'static str] = match server {
        Server::Artemis => &[],
        Server::Classic => &["openwire"],
    };
    let names = server.schemes();
    let scheme = Scheme { names, ports: (5672, 5671), timeout: Duration::from_secs(5), own };
    let access = Access::of(endpoint, &scheme)?.without_path(&scheme)?;
    if access.has_tls {
        // Read for each connection, and looked at once before anything is asked for.
        tls(&access)?;
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
