//! JSON text to BSON, with its order and every number exact.
//!
//! A number is a 64 bit integer if it is written as one, a double if its text comes back from it, else 128 bits of
//! decimal. What has none of these forms is refused: nothing is rounded.

use mongodb::bson::raw::CString;
use mongodb::bson::{RawArrayBuf, RawBson, RawDocumentBuf};

use crate::decimal;

/// The server takes a hundred levels, of which a document may be inside another one.
const DEPTH: usize = 90;

/// The value that a text stands for.
///
/// # Errors
/// Why it has no exact form.
pub(crate) fn parse(text: &str) -> Result<RawBson, &'static str> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.space();
    if reader.rest.is_empty() { Ok(value) } else { Err(MALFORMED) }
}

const MALFORMED: &str = "its JSON cannot be read";

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    /// Passes a character if it comes next.
    fn takes(&mut self, wanted: char) -> bool {
        self.space();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Result<RawBson, &'static str> {
        if depth > DEPTH {
            return Err("its JSON is nested deeper than the server takes");
        }
        self.space();
        match self.rest.as_bytes().first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(RawBson::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                let words = [
                    ("null", RawBson::Null),
                    ("true", RawBson::Boolean(true)),
                    ("false", RawBson::Boolean(false)),
                ];
                for (word, value) in words {
                    if let Some(rest) = self.rest.strip_prefix(word) {
                        self.rest = rest;
                        return Ok(value);
                    }
                }
                Err(MALFORMED)
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<RawBson, &'static str> {
        self.takes('{');
        let mut document = RawDocumentBuf::new();
        let mut seen = std::collections::HashSet::new();
        if self.takes('}') {
            return Ok(RawBson::Document(document));
        }
        loop {
            self.space();
            let key = self.string()?;
            if key.starts_with('$') {
                return Err("its JSON has a key that begins with $, which has a meaning of its own there");
            }
            if !self.takes(':') {
                return Err(MALFORMED);
            }
            let value = self.value(depth + 1)?;
            let name =
                CString::try_from(key.as_str()).map_err(|_| "its JSON has a key with a zero character")?;
            if !seen.insert(key) {
                return Err("its JSON has a key twice");
            }
            document.append(name, value);
            if self.takes('}') {
                return Ok(RawBson::Document(document));
            }
            if !self.takes(',') {
                return Err(MALFORMED);
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<RawBson, &'static str> {
        self.takes('[');
        let mut list = RawArrayBuf::new();
        if self.takes(']') {
            return Ok(RawBson::Array(list));
        }
        loop {
            list.push(self.value(depth + 1)?);
            if self.takes(']') {
                return Ok(RawBson::Array(list));
            }
            if !self.takes(',') {
                return Err(MALFORMED);
            }
        }
    }

    fn string(&mut self) -> Result<String, &'static str> {
        let bytes = self.rest.as_bytes();
        if bytes.first() != Some(&b'"') {
            return Err(MALFORMED);
        }
        let mut at = 1;
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                Some(_) => at += 1,
                None => return Err(MALFORMED),
            }
        }
        let (text, rest) = self.rest.split_at(at + 1);
        self.rest = rest;
        serde_json::from_str(text).map_err(|_| "its JSON has a text that is not Unicode")
    }

    fn number(&mut self) -> Result<RawBson, &'static str> {
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E')))
            .unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        // The grammar of numbers is JSON's own.
        serde_json::from_str::<&serde_json::value::RawValue>(text).map_err(|_| MALFORMED)?;
        number(text)
    }
}

fn number(text: &str) -> Result<RawBson, &'static str> {
    if let Ok(integer) = text.parse::<i64>()
        && integer.to_string() == text
    {
        return Ok(RawBson::Int64(integer));
    }
    if let Ok(float) = text.parse::<f64>()
        && format!("{float:?}") == text
    {
        return Ok(RawBson::Double(float));
    }
    decimal::pack(text)
        .map(RawBson::Decimal128)
        .map_err(|_| "its JSON has a number with more digits than are kept")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extended;

    #[test]
    fn json_comes_back_as_it_was() {
        for text in [
            r#"{"b":1,"a":[null,true,false,-1,0.5,1.50,1e2,"x\"\\\u0001é"],"":{}}"#,
            "[]",
            "3",
            "\"x\"",
            "null",
            "9223372036854775807",
            "9223372036854775808",
            "0.1",
            "1.0",
            "-0.0",
            "-0",
            "1e300",
            "0.30000000000000004",
            "123456789.123456789123456789",
        ] {
            let mut out = String::new();
            extended::plain(parse(text).unwrap().as_raw_bson_ref(), &mut out).unwrap();
            let expected = text.replace("1e2", "1E+2");
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn what_has_no_exact_form_is_refused() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [
            "",
            "{",
            "[1,]",
            "01",
            "1.",
            "tru",
            "{\"a\":1,\"a\":2}",
            "{\"$set\":1}",
            "{\"a\\u0000\":1}",
            "\"\\ud800\"",
            "1.00000000000000000000000000000000001",
            "1 2",
            "\"\\",
            &deep,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
