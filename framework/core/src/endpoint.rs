//! URLs of stores and brokers, with their secrets kept out of sight.

use std::fmt;

use url::Url;

use crate::error::{Error, Result, code};

/// A URL that never shows its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    scheme: String,
    full: String,
}

impl Endpoint {
    /// Reads a URL. `${NAME}` stands for the environment variable of that name.
    ///
    /// # Errors
    /// `url-invalid` if it has no scheme or names a variable that is not set.
    pub fn parse(text: &str) -> Result<Self> {
        let full = expand(text)?;
        match full.split_once(':') {
            Some((scheme, _))
                if !scheme.is_empty()
                    && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c)) =>
            {
                Ok(Self { scheme: scheme.to_ascii_lowercase(), full })
            }
            _ => Err(Error::new(
                code::URL_INVALID,
                "a URL needs a scheme, as in sqlite:shop.db or postgres://host/db",
            )),
        }
    }

    /// The part before the colon, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The part behind `scheme:`, without the parameters. For `sqlite:` a path.
    pub fn path(&self) -> &str {
        let rest = &self.full[self.scheme.len() + 1..];
        rest.split_once('?').map_or(rest, |(path, _)| path)
    }

    /// The whole URL with its password, for a driver alone.
    pub fn expose(&self) -> &str {
        &self.full
    }

    /// The URL taken apart, for schemes with a host.
    ///
    /// # Errors
    /// `url-invalid`, without the URL's text in the message.
    pub fn url(&self) -> Result<Url> {
        Url::parse(&self.full).map_err(|e| {
            Error::new(code::URL_INVALID, format!("the {} URL cannot be read: {e}", self.scheme))
                .hint("percent-encode special characters in the user name and the password")
        })
    }

    /// What the database behind it is called, as it stands in the URL: for the default name of a migration.
    pub fn database(&self) -> &str {
        let path = self.path();
        let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path);
        last.strip_suffix(".db").unwrap_or(last)
    }
}

fn expand(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| Error::new(code::URL_INVALID, "a ${ in the URL has no closing brace"))?;
        let value = std::env::var(name).map_err(|_| {
            Error::new(code::URL_INVALID, format!("the environment variable {name} is not set"))
        })?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.full.split_once("://") else {
            return f.write_str(self.full.split_once('?').map_or(&self.full, |(path, _)| path));
        };
        let rest = rest.split_once('?').map_or(rest, |(path, _)| path);
        // A password that should have been encoded may have any of these in it: all before the last @ is secret.
        let host = rest.rfind('@').map_or(0, |at| at + 1);
        let (authority, tail) = rest[host..].find('/').map_or((rest, ""), |at| rest.split_at(host + at));
        match authority.rsplit_once('@') {
            Some((user, host)) => {
                let user = user.split_once(':').map_or(user, |(user, _)| user);
                write!(f, "{scheme}://{user}@{host}{tail}")
            }
            None => write!(f, "{scheme}://{authority}{tail}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_parameters_are_not_shown() {
        for (url, shown) in [
            ("postgres://app:s3cret@db:5432/shop?sslmode=disable&password=x", "postgres://app@db:5432/shop"),
            ("postgres://u:s3cr@t/pw@db:5432/shop", "postgres://u@db:5432/shop"),
            ("postgres://db/shop", "postgres://db/shop"),
            ("mongodb://a:p@h1,h2/?replicaSet=rs0", "mongodb://a@h1,h2/"),
            ("sqlite:shop.db?key=s3cret", "sqlite:shop.db"),
            ("memory:", "memory:"),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(format!("{endpoint:?}"), shown);
        }
    }

    #[test]
    fn names_come_from_the_last_part() {
        for (url, name) in
            [("sqlite:/var/lib/shop.db", "shop"), ("postgres://h/orders", "orders"), ("memory:", "")]
        {
            assert_eq!(Endpoint::parse(url).unwrap().database(), name);
        }
    }

    #[test]
    fn an_unset_variable_is_named() {
        let error = Endpoint::parse("postgres://u:${TIDEGATE_NO_SUCH}@h/d").unwrap_err();
        assert_eq!(
            error.to_string(),
            "TG0002 url-invalid: the environment variable TIDEGATE_NO_SUCH is not set"
        );
        assert!(Endpoint::parse("shop.db").is_err());
    }
}
