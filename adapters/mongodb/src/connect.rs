//! What a URL says, and the client made from it.

use std::time::Duration;

use mongodb::options::{ClientOptions, ReadConcern, WriteConcern};
use mongodb::{Client, Database};
use tidegate_core::error::code;
use tidegate_core::{Endpoint, Error, Result};

use crate::error::During;

/// How long a server is looked for, unless the URL says otherwise.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The database that a URL names.
pub(crate) fn database_name(endpoint: &Endpoint) -> Result<String> {
    let invalid = || {
        Error::new(
            code::URL_INVALID,
            "a mongodb URL names a database, as in mongodb://host/shop?replicaSet=rs0",
        )
    };
    let hosts_and_name = endpoint.path().strip_prefix("//").ok_or_else(invalid)?;
    let (_, name) = hosts_and_name.rsplit_once('/').ok_or_else(invalid)?;
    if name.is_empty() || name.contains(['$', '.', ' ', '"']) {
        return Err(invalid());
    }
    Ok(name.to_owned())
}

/// A client whose every read is of what a majority has, and whose every write waits for a majority's journal.
pub(crate) async fn database(endpoint: &Endpoint, name: &str) -> Result<Database> {
    let mut options = ClientOptions::parse(endpoint.expose()).await.map_err(|error| {
        let unreachable = matches!(*error.kind, mongodb::error::ErrorKind::DnsResolve { .. });
        if unreachable {
            return crate::error::from_driver(error, "resolve the URL");
        }
        // The driver's words may hold the URL and its password.
        Error::new(code::URL_INVALID, "the mongodb URL cannot be read")
            .hint("percent-encode special characters in the user name and the password")
    })?;
    options.app_name.get_or_insert_with(|| "tidegate".to_owned());
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.retry_writes = Some(true);
    options.retry_reads = Some(true);
    options.read_concern = Some(ReadConcern::majority());
    options.write_concern =
        Some(WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority).journal(true).build());
    options.selection_criteria = None;
    let client = Client::with_options(options).during("set up the client")?;
    Ok(client.database(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_database() {
        for (url, name) in [
            ("mongodb://h/shop", Some("shop")),
            ("mongodb://u:p@a:1,b:2/shop?replicaSet=rs0", Some("shop")),
            ("mongodb+srv://h/shop", Some("shop")),
            ("mongodb://h", None),
            ("mongodb://h/", None),
            ("mongodb://h/?replicaSet=rs0", None),
            ("mongodb:shop", None),
        ] {
            let found = database_name(&Endpoint::parse(url).unwrap());
            assert_eq!(found.as_deref().ok(), name, "{url}");
        }
    }
}
