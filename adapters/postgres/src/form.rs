//! The types of the server, by the form of their values on the wire.

use tidegate_core::Type;

/// The first number of a type that a database made itself: below, a number means the same on every server.
pub(crate) const OID_OWN: u32 = 16_384;

/// How the bytes of a value are to be read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    /// `text`, `varchar`, `name`, the label of an enum.
    Text,
    /// `character(n)`: spaces at the end mean nothing.
    Bpchar,
    /// `"char"`, one byte.
    Char,
    Bytes,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Json,
    Jsonb,
    Xml,
    Money,
    TimeTz,
    Interval,
    Inet,
    Mac,
    Bits,
    /// Of elements whose type stands in the value.
    Array,
    /// Known to the server alone.
    Opaque,
}

impl Form {
    /// The form of a type by its number, and by its kind where the number is a database's own.
    pub(crate) fn of(oid: u32, kind: &Type) -> Self {
        match oid {
            16 => Self::Bool,
            17 => Self::Bytes,
            18 => Self::Char,
            19 | 25 | 1043 => Self::Text,
            20 => Self::Int8,
            21 => Self::Int2,
            23 => Self::Int4,
            26 => Self::Oid,
            114 => Self::Json,
            142 => Self::Xml,
            650 | 869 => Self::Inet,
            700 => Self::Float4,
            701 => Self::Float8,
            774 | 829 => Self::Mac,
            790 => Self::Money,
            1042 => Self::Bpchar,
            1082 => Self::Date,
            1083 => Self::Time,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            1186 => Self::Interval,
            1266 => Self::TimeTz,
            1560 | 1562 => Self::Bits,
            1700 => Self::Numeric,
            2950 => Self::Uuid,
            3802 => Self::Jsonb,
            _ => match kind {
                Type::Array(_) => Self::Array,
                Type::Text => Self::Text,
                _ => Self::Opaque,
            },
        }
    }

    /// What the values of a built-in type are; `None` for those without a canonical kind.
    pub(crate) fn kind(self, modifier: i32) -> Option<Type> {
        Some(match self {
            Self::Bool => Type::Bool,
            Self::Int2 => Type::Int { bits: 16 },
            Self::Int4 => Type::Int { bits: 32 },
            Self::Int8 | Self::Oid => Type::Int { bits: 64 },
            Self::Float4 => Type::Float { bits: 32 },
            Self::Float8 => Type::Float { bits: 64 },
            Self::Numeric => match numeric_modifier(modifier) {
                Some((precision, scale)) => Type::Decimal { precision: Some(precision), scale: Some(scale) },
                None => Type::Decimal { precision: None, scale: None },
            },
            Self::Text | Self::Bpchar | Self::Char => Type::Text,
            Self::Bytes => Type::Bytes,
            Self::Uuid => Type::Uuid,
            Self::Date => Type::Date,
            Self::Time => Type::Time,
            Self::Timestamp => Type::Timestamp,
            Self::TimestampTz => Type::TimestampTz,
            Self::Json | Self::Jsonb => Type::Json,
            Self::Xml
            | Self::Money
            | Self::TimeTz
            | Self::Interval
            | Self::Inet
            | Self::Mac
            | Self::Bits
            | Self::Array
            | Self::Opaque => return None,
        })
    }

    /// Whether two values are equal exactly if what [`Codec::key`](tidegate_core::Codec::key) gives is.
    pub(crate) fn is_fit_for_key(self) -> bool {
        !matches!(self, Self::Json | Self::Jsonb | Self::Xml | Self::Array | Self::Opaque)
    }

    /// Whether a value of this form stands for itself in a key, byte by byte.
    pub(crate) fn is_plain_key(self) -> bool {
        !matches!(self, Self::Float4 | Self::Float8 | Self::Numeric | Self::Bpchar | Self::Interval)
    }
}

/// Precision and scale of a `numeric` by its modifier.
pub(crate) fn numeric_modifier(modifier: i32) -> Option<(u32, i32)> {
    let both = modifier.checked_sub(4).filter(|both| *both >= 0)?;
    // The scale has eleven bits, the upper one for its sign.
    let scale = ((both & 0x7FF) ^ 0x400) - 0x400;
    Some((u32::try_from(both >> 16 & 0xFFFF).ok()?, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modifier_holds_precision_and_scale() {
        assert_eq!(numeric_modifier(-1), None);
        assert_eq!(numeric_modifier((12 << 16 | 2) + 4), Some((12, 2)));
        assert_eq!(numeric_modifier((3 << 16 | (-2_i32 & 0x7FF)) + 4), Some((3, -2)));
    }
}
