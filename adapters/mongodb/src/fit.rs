//! How a source's column is held here.
//!
//! | source | here |
//! |---|---|
//! | bool | bool |
//! | integers of up to 32 bits, of 64 bits | int, long |
//! | floats | double |
//! | numeric of up to 34 digits | decimal (128 bits), with its scale; one without a precision is checked row by row |
//! | text, bytes, uuid | string, binary, binary of subtype 4 |
//! | json | sub-document, list or scalar |
//! | date | date at midnight UTC |
//! | timestamps | refused, since a date has milliseconds: `--convert timestamptz=date` or `=string` |
//! | arrays | list |
//! | documents of MongoDB | as they are |
//! | the rest | refused: `--convert TYPE=string` |

use tidegate_core::error::code;
use tidegate_core::port::{Conversions, Fit, convert_argument};
use tidegate_core::{Column, Encoding, Error, Result, Type};

use crate::codec;

pub(crate) fn fit(column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
    if encoding == codec::BSON {
        return Ok(Fit { native: column.native.clone(), kind: column.kind.clone(), note: None });
    }
    check_name(column)?;
    held(column, &column.kind, column.conversion(conversions))
}

fn held(column: &Column, kind: &Type, conversion: Option<&str>) -> Result<Fit> {
    let same = |native: &str| Ok(Fit { native: native.to_owned(), kind: kind.clone(), note: None });
    match (kind, conversion) {
        (Type::Array(item), conversion) => {
            let item = held(column, item, conversion)?;
            Ok(Fit { native: "array".to_owned(), kind: Type::Array(Box::new(item.kind)), note: item.note })
        }
        (_, Some("string")) => {
            let note = Some("converted to a string".to_owned());
            Ok(Fit { native: "string".to_owned(), kind: Type::Text, note })
        }
        (Type::Timestamp | Type::TimestampTz, Some("date")) => {
            let note = Some("a date has milliseconds; a row with more stops the table".to_owned());
            Ok(Fit { native: "date".to_owned(), kind: kind.clone(), note })
        }
        (_, Some(other)) => Err(refused(column, format!("cannot be converted to {other}"))),
        (Type::Bool, None) => same("bool"),
        (Type::Int { bits: ..=32 }, None) => same("int"),
        (Type::Int { .. }, None) => same("long"),
        (Type::Float { .. }, None) => same("double"),
        (Type::Decimal { precision: Some(35..), .. }, None) => {
            Err(refused(column, "has more than 34 digits".to_owned()))
        }
        (Type::Decimal { precision, .. }, None) => {
            let note = precision.is_none().then(|| "more than 34 digits in a row stop the table".to_owned());
            Ok(Fit { native: "decimal".to_owned(), kind: kind.clone(), note })
        }
        (Type::Text, None) => same("string"),
        (Type::Bytes, None) => same("binData"),
        (Type::Uuid, None) => same("uuid"),
        (Type::Date, None) => {
            let note = Some("a date at midnight UTC".to_owned());
            Ok(Fit { native: "date".to_owned(), kind: Type::Date, note })
        }
        (Type::Json | Type::Document, None) => same("object"),
        (Type::Any, None) => same("any"),
        (Type::Timestamp | Type::TimestampTz, None) => {
            let hint = format!(
                "{} if whole milliseconds are enough, or {}",
                convert_argument(kind.word(), "date"),
                convert_argument(kind.word(), "string")
            );
            Err(refused(column, "loses what is below a millisecond".to_owned()).hint(hint))
        }
        _ => Err(refused(column, "has no type here".to_owned())),
    }
}

fn refused(column: &Column, why: String) -> Error {
    let named = column.conversion_name();
    Error::new(code::TYPE_REFUSED, format!("column {} of type {named} {why}", column.name))
        .with("column", &column.name)
        .hint(convert_argument(named, "string"))
}

/// Names that mean something else in a document, or cannot be in one.
fn check_name(column: &Column) -> Result<()> {
    let name = &column.name;
    if !name.is_empty() && !name.contains(['$', '.', '\0']) {
        return Ok(());
    }
    Err(Error::new(code::TYPE_REFUSED, format!("the name of column {name:?} cannot be a field's"))
        .with("column", name)
        .hint("rename the column, or leave it out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn native(kind: Type, conversions: &Conversions) -> Result<String> {
        fit(&Column::new("c", kind), Encoding("other"), conversions).map(|fit| fit.native)
    }

    /// Found by testing: a shell made several words of a type's name.
    #[test]
    fn the_hint_of_a_refused_type_can_be_pasted() {
        for (native, expected) in [
            ("interval", "--convert interval=string"),
            ("time with time zone", "--convert 'time with time zone=string'"),
            ("numeric(40,2)", "--convert 'numeric(40,2)=string'"),
            (r#""char""#, r#"--convert '"char"=string'"#),
            ("a$HOME b", "--convert 'a$HOME b=string'"),
            ("it's", r"--convert 'it'\''s=string'"),
        ] {
            let mut column = Column::new("c", Type::Native(native.into()));
            column.native = native.to_owned();
            let error = fit(&column, Encoding("other"), &Conversions::new()).unwrap_err();
            assert_eq!(error.hint_text(), Some(expected));
        }
    }

    #[test]
    fn each_type_has_a_place_or_is_refused() {
        let none = Conversions::new();
        let decimal = |precision| Type::Decimal { precision, scale: None };
        for (kind, expected) in [
            (Type::Bool, Some("bool")),
            (Type::Int { bits: 16 }, Some("int")),
            (Type::Int { bits: 64 }, Some("long")),
            (Type::Float { bits: 32 }, Some("double")),
            (decimal(Some(34)), Some("decimal")),
            (decimal(None), Some("decimal")),
            (decimal(Some(35)), None),
            (Type::Date, Some("date")),
            (Type::Time, None),
            (Type::TimestampTz, None),
            (Type::Native("interval".into()), None),
            (Type::Array(Box::new(Type::Text)), Some("array")),
            (Type::Array(Box::new(Type::TimestampTz)), None),
            (Type::Json, Some("object")),
        ] {
            assert_eq!(native(kind.clone(), &none).ok().as_deref(), expected, "{kind:?}");
        }
        let convert =
            [("timestamptz".to_owned(), "date".to_owned()), ("time".to_owned(), "string".to_owned())].into();
        assert_eq!(native(Type::TimestampTz, &convert).unwrap(), "date");
        assert_eq!(native(Type::Time, &convert).unwrap(), "string");
    }

    #[test]
    fn names_that_mean_something_are_refused() {
        for name in ["", "a.b", "$a", "a\0"] {
            let error =
                fit(&Column::new(name, Type::Bool), Encoding("other"), &Conversions::new()).unwrap_err();
            assert_eq!(error.code(), code::TYPE_REFUSED, "{name:?}");
        }
    }
}
