//! The URLs that servers are given by.

/// Puts another database into a URL.
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let host = base.find("://").map_or(0, |at| at + 3);
    let end = base[host..].find('/').map_or(base.len(), |at| host + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{database}{query}", &base[..end])
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        for (url, expected) in [
            ("postgres://u@h:1/postgres", "postgres://u@h:1/x"),
            ("postgres://u:p@h:1", "postgres://u:p@h:1/x"),
            ("postgres://h/a?sslmode=require", "postgres://h/x?sslmode=require"),
            ("mongodb://h:1,i:2/?replicaSet=r", "mongodb://h:1,i:2/x?replicaSet=r"),
        ] {
            assert_eq!(with_database(url, "x"), expected);
        }
    }
}
