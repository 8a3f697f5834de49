//! How a source's column is held here.
//!
//! From SQLite, the declared type is kept word for word, so that values are treated in the same way. From elsewhere:
//!
//! | source | here |
//! |---|---|
//! | bool | `INTEGER` 0 or 1 |
//! | integers | `INTEGER` |
//! | floats | `REAL`; NaN and -0.0 have no place there and are refused row by row |
//! | numeric | `TEXT`, digit for digit; also NaN and the infinities |
//! | text, json, documents | `TEXT` |
//! | bytes | `BLOB` |
//! | uuid | `TEXT`, in lower case with hyphens |
//! | date, time, timestamps | `TEXT`, exact to the microsecond, also the infinities |
//! | arrays | `TEXT`, a JSON list |
//! | columns with a type a value | `TEXT`, as JSON where it is no text |
//!
//! Created tables are not `STRICT`: with these types no value is converted, and before a value is written it is
//! checked against what the column would do to it.

use tidegate_core::error::code;
use tidegate_core::port::{Conversions, Fit, convert_argument};
use tidegate_core::{Column, Encoding, Error, Result, Type};

use crate::cells::Affinity;

pub(crate) fn fit(column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
    if is_ours(column, encoding) {
        return Ok(Fit { native: column.native.clone(), kind: column.kind.clone(), note: None });
    }
    match column.conversion(conversions) {
        None => {}
        Some("string") => return Ok(held("TEXT", Type::Text, Some("converted to text"))),
        Some(other) => {
            let error = Error::new(code::TYPE_REFUSED, "the conversion is unknown").with("conversion", other);
            return Err(error
                .with("column", &column.name)
                .hint(convert_argument(column.conversion_name(), "string")));
        }
    }
    let kind = column.kind.clone();
    Ok(match &column.kind {
        Type::Bool => held("INTEGER", Type::Int { bits: 64 }, Some("true is 1, false is 0")),
        Type::Int { .. } => held("INTEGER", kind, None),
        Type::Float { .. } => held("REAL", Type::Float { bits: 64 }, Some("NaN and -0.0 are refused")),
        Type::Decimal { .. } => held("TEXT", kind, Some("a decimal is text, digit for digit")),
        Type::Text | Type::Json | Type::Document => held("TEXT", kind, None),
        Type::Bytes => held("BLOB", kind, None),
        Type::Uuid => held("TEXT", kind, Some("a uuid is text in lower case with hyphens")),
        Type::Date | Type::Time | Type::Timestamp | Type::TimestampTz => {
            held("TEXT", kind, Some("text, exact to the microsecond"))
        }
        Type::Array(_) => held("TEXT", Type::Json, Some("a list is JSON text")),
        Type::Any => held("TEXT", kind, Some("any type is text, as JSON where it is no text")),
        other => {
            return Err(Error::new(
                code::TYPE_REFUSED,
                format!("the type {} of column {} is not known here", column.native, column.name),
            )
            .with("column", &column.name)
            .with("type", other.word())
            .hint(convert_argument(column.conversion_name(), "string")));
        }
    })
}

fn held(native: &str, kind: Type, note: Option<&str>) -> Fit {
    Fit { native: native.to_owned(), kind, note: note.map(str::to_owned) }
}

/// Described by this adapter: its numbers for types are those of the affinities.
fn is_ours(column: &Column, encoding: Encoding) -> bool {
    let numbers = Affinity::Blob as u32..=Affinity::Real as u32;
    encoding == Encoding::CANONICAL && numbers.contains(&column.native_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_a_place_or_is_refused() {
        let none = Conversions::new();
        for (kind, native) in [
            (Type::Bool, "INTEGER"),
            (Type::Int { bits: 16 }, "INTEGER"),
            (Type::Float { bits: 32 }, "REAL"),
            (Type::Decimal { precision: Some(12), scale: Some(2) }, "TEXT"),
            (Type::Uuid, "TEXT"),
            (Type::TimestampTz, "TEXT"),
            (Type::Array(Box::new(Type::Text)), "TEXT"),
            (Type::Bytes, "BLOB"),
            (Type::Any, "TEXT"),
        ] {
            assert_eq!(fit(&Column::new("c", kind), Encoding("other"), &none).unwrap().native, native);
        }
        let mut interval = Column::new("c", Type::Native("interval".into()));
        interval.native = "interval".to_owned();
        assert_eq!(fit(&interval, Encoding("other"), &none).unwrap_err().code(), code::TYPE_REFUSED);
        let convert = [("interval".to_owned(), "string".to_owned())].into();
        assert_eq!(fit(&interval, Encoding("other"), &convert).unwrap().native, "TEXT");
        let ours = Column {
            native: "DECIMAL(10,2)".to_owned(),
            native_id: Affinity::Numeric as u32,
            ..Column::new("c", Type::Any)
        };
        assert_eq!(fit(&ours, Encoding::CANONICAL, &none).unwrap().native, "DECIMAL(10,2)");
    }
}
