//! Decimal numbers: text digit by digit, and 128 bits.

use mongodb::bson::Decimal128;
use tidegate_core::text::decimal as plain;

/// How many digits 128 bits hold.
const DIGITS: usize = 34;

/// The same number with the same scale in 128 bits.
///
/// # Errors
/// Why there is none.
pub(crate) fn pack(text: &str) -> Result<Decimal128, &'static str> {
    const TOO_LONG: &str = "it has more than 34 digits, or is too large or too small";
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|digit| *digit == b'0').count();
    if digits > DIGITS {
        return Err(TOO_LONG);
    }
    let packed: Decimal128 = text.parse().map_err(|_| TOO_LONG)?;
    // A number that was clamped has another text.
    if plain(&packed.to_string()) == plain(text) { Ok(packed) } else { Err(TOO_LONG) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        for text in [
            "0",
            "1",
            "-1.00",
            "0.001",
            "0.00000001",
            "NaN",
            "Infinity",
            "-Infinity",
            "12345678901234567890.12345678901234",
            "9999999999999999999999999999999999",
            "0.00",
            "100000000000000000000",
        ] {
            assert_eq!(plain(&pack(text).unwrap().to_string()), text);
        }
        for text in ["12345678901234567890123456789012345", "1.0000000000000000000000000000000000", "1e9999"]
        {
            assert!(pack(text).is_err(), "{text}");
        }
    }
}
