//! What sampled documents have in common, and the columns that can be made of it.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_core::Result;

use crate::mapping::{Compute, FLOAT_INTEGERS_MAX, Field, Kind, fields};

/// Columns of one collection at most. A collection that uses names as data has a field for each of them, and tables have
/// no room for so many.
const COLUMNS_MAX: usize = 1_000;

/// The bytes that a name has at most: PostgreSQL cuts what is longer.
const NAME_BYTES_MAX: usize = 63;

/// What is counted beside types.
const MISSING: &str = "missing";

/// Names that a column cannot have: those of the document's own columns, and of columns that PostgreSQL has in each table.
const NAMES_TAKEN: &[&str] = &["_id", "document", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// The documents of one collection that were read.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) documents: u64,
    fields: BTreeMap<String, Seen>,
}

/// The values of one field.
#[derive(Debug, Default)]
struct Seen {
    /// How often it was of which type.
    types: BTreeMap<&'static str, u64>,
    /// Whether an integer was among them that a float does not hold.
    has_large_integer: bool,
}

/// A column for a field.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) compute: Compute,
    /// How often the field was of which type, and how often it was missing.
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

impl Found {
    /// Whether only JSON holds the types that were seen.
    pub(crate) fn is_mixed(&self) -> bool {
        let types = self.seen.keys().filter(|word| !["null", MISSING].contains(word));
        self.compute.kind == Kind::Json && types.count() > 1
    }
}

impl Sample {
    /// Adds a document, as canonical Extended JSON.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn add(&mut self, document: &str) -> Result<()> {
        self.documents += 1;
        for (name, value) in &fields(document)? {
            // The key is a column already.
            if name == "_id" {
                continue;
            }
            let field = Field::of(value);
            let seen = self.fields.entry(name.clone()).or_default();
            *seen.types.entry(field.word()).or_default() += 1;
            seen.has_large_integer |=
                matches!(field, Field::Int64(v) if v.unsigned_abs() > FLOAT_INTEGERS_MAX);
        }
        Ok(())
    }

    /// The columns, and how many fields have none since they are too many.
    pub(crate) fn columns(&self) -> (Vec<Found>, usize) {
        let mut often: Vec<(&String, &Seen)> = self.fields.iter().collect();
        often.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.count()));
        let left = often.len().saturating_sub(COLUMNS_MAX);
        often.truncate(COLUMNS_MAX);
        often.sort_by_key(|(name, _)| *name);
        let mut taken: BTreeSet<String> = NAMES_TAKEN.iter().map(|name| (*name).to_owned()).collect();
        let columns = often.into_iter().map(|(field, seen)| {
            let missing = self.documents - seen.count();
            let mut found = seen.types.clone();
            if missing > 0 {
                found.insert(MISSING, missing);
            }
            let compute = Compute { kind: seen.kind(), value: expression(field) };
            Found { name: column_name(field, &mut taken), compute, seen: found }
        });
        (columns.collect(), left)
    }
}

impl Seen {
    fn count(&self) -> u64 {
        self.types.values().sum()
    }

    /// The narrowest type that holds every value seen exactly; `json` if only that does.
    fn kind(&self) -> Kind {
        let types: Vec<&str> = self.types.keys().copied().filter(|word| *word != "null").collect();
        match types[..] {
            ["bool"] => Kind::Bool,
            ["int"] => Kind::Int32,
            ["long"] | ["int", "long"] => Kind::Int64,
            ["double"] => Kind::Float64,
            ["double", "int"] | ["double", "long"] | ["double", "int", "long"] if !self.has_large_integer => {
                Kind::Float64
            }
            ["decimal"] | ["decimal", "int"] | ["decimal", "long"] | ["decimal", "int", "long"] => {
                Kind::Decimal
            }
            ["string"] | ["objectId"] => Kind::Text,
            ["uuid"] => Kind::Uuid,
            ["binData"] => Kind::Bytes,
            ["date"] => Kind::Timestamptz,
            _ => Kind::Json,
        }
    }
}

/// The expression for a field of a document. Whether the sample has it everywhere says nothing of the others.
fn expression(field: &str) -> String {
    if is_selector(field) {
        return format!("has(document.{field}) ? document.{field} : null");
    }
    let name = quoted(field);
    format!("{name} in document ? document[{name}] : null")
}

/// Whether a name can stand behind a point.
fn is_selector(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !["in", "true", "false", "null"].contains(&name)
}

/// A text in quotes, with the escapes that JSON, CEL and TOML have in common.
pub(crate) fn quoted(text: &str) -> String {
    // JSON leaves this one as it is; TOML does not.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A name that no column before has in any letter case, since to SQLite `Note` is `note`.
fn column_name(field: &str, taken: &mut BTreeSet<String>) -> String {
    let wanted = if field.is_empty() { "field" } else { field };
    let mut name = cut(wanted, NAME_BYTES_MAX).to_owned();
    let mut number = 1;
    while !taken.insert(name.to_ascii_lowercase()) {
        number += 1;
        let end = format!("_{number}");
        name = format!("{}{end}", cut(wanted, NAME_BYTES_MAX - end.len()));
    }
    name
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(values: &[&str]) -> Kind {
        let mut sample = Sample::default();
        for value in values {
            sample.add(&format!("{{\"_id\":1,\"f\":{value}}}")).unwrap();
        }
        sample.columns().0[0].compute.kind
    }

    #[test]
    fn a_type_holds_every_value_that_was_seen() {
        const INT: &str = r#"{"$numberInt":"1"}"#;
        const LONG: &str = r#"{"$numberLong":"1"}"#;
        const LARGE: &str = r#"{"$numberLong":"9007199254740993"}"#;
        const DOUBLE: &str = r#"{"$numberDouble":"0.5"}"#;
        const DECIMAL: &str = r#"{"$numberDecimal":"0.5"}"#;
        for (values, kind) in [
            (&[INT, "null"][..], Kind::Int32),
            (&[INT, LONG], Kind::Int64),
            (&[INT, DOUBLE], Kind::Float64),
            (&[LARGE, DOUBLE], Kind::Json),
            (&[LARGE, DECIMAL, INT], Kind::Decimal),
            (&[DECIMAL, DOUBLE], Kind::Json),
            (&["\"x\"", r#"{"$oid":"0a0a0a0a0a0a0a0a0a0a0a0a"}"#], Kind::Json),
            (&["null"], Kind::Json),
            (&["{}"], Kind::Json),
            (&["[]", "{}"], Kind::Json),
            (&["true"], Kind::Bool),
            (&[r#"{"$timestamp":{"t":1,"i":2}}"#], Kind::Json),
        ] {
            assert_eq!(kinds(values), kind, "{values:?}");
        }
    }

    #[test]
    fn names_are_reached_and_differ() {
        let mut taken = BTreeSet::from(["document".to_owned()]);
        for (field, name, value) in [
            ("total", "total", "has(document.total) ? document.total : null"),
            ("Total", "Total_2", "has(document.Total) ? document.Total : null"),
            ("document", "document_2", "has(document.document) ? document.document : null"),
            ("in", "in", r#""in" in document ? document["in"] : null"#),
            ("", "field", r#""" in document ? document[""] : null"#),
            (
                "a\"b\\c\n\u{7f}",
                "a\"b\\c\n\u{7f}",
                r#""a\"b\\c\n\u007f" in document ? document["a\"b\\c\n\u007f"] : null"#,
            ),
            ("$é.x", "$é.x", r#""$é.x" in document ? document["$é.x"] : null"#),
        ] {
            assert_eq!(expression(field), value);
            assert_eq!(column_name(field, &mut taken), name);
        }
        let long = "é".repeat(40);
        assert_eq!(column_name(&long, &mut taken), "é".repeat(31));
        assert_eq!(column_name(&long, &mut taken), format!("{}_2", "é".repeat(30)));
    }

    #[test]
    fn a_collection_with_too_many_fields_keeps_the_most_frequent() {
        let mut sample = Sample::default();
        for at in 0..COLUMNS_MAX + 5 {
            sample.add(&format!("{{\"_id\":1,\"zz\":1,\"k{at}\":null}}")).unwrap();
        }
        let (columns, left) = sample.columns();
        assert_eq!((columns.len(), left), (COLUMNS_MAX, 6));
        assert!(columns.iter().any(|found| found.name == "zz"));
    }
}
