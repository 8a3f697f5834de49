//! Decimal numbers: text digit by digit, and 128 bits.

use mongodb::bson::Decimal128;

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

/// The text of a number without an exponent: `1.05E+3` is `1050`.
pub(crate) fn plain(text: &str) -> String {
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else {
        return text.strip_prefix('+').unwrap_or(text).to_owned();
    };
    let Ok(exponent) = exponent.parse::<i64>() else { return text.to_owned() };
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(exponent);
    let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    if !(-7_000..=7_000).contains(&point) {
        return text.to_owned();
    }
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let unsigned = if point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else if point >= length {
        format!("{digits}{}", zeros(point - length))
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
        format!("{whole}.{fraction}")
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((&unsigned, ""));
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
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

    #[test]
    fn exponents_are_written_out() {
        for (text, expected) in [
            ("1.05E+3", "1050"),
            ("1E-8", "0.00000001"),
            ("-12.5e1", "-125"),
            ("0E+3", "0"),
            ("1.25E1", "12.5"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }
}
