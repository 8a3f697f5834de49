//! Canonical cells, of which some are equal keys and not the same.

use tidegate_core::{Codec, Column, Encoding, Result, Type, Value};

/// Reads [`Encoding::CANONICAL`]. Decimals are equal by their number, as in the stores that have such columns: 1 and 1.0
/// are one key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByNumber;

impl Codec for ByNumber {
    fn encoding(&self) -> Encoding {
        Encoding::CANONICAL
    }

    fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        Value::decode(cell)
    }

    fn key(&self, column: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match (&column.kind, Value::decode(cell)?) {
            (Type::Decimal { .. }, Value::Decimal(digits)) if digits.contains('.') => {
                let number = digits.trim_end_matches('0').trim_end_matches('.');
                Value::Decimal(number.into()).encode(out);
            }
            (_, value) => value.encode(out),
        }
        Ok(())
    }
}
