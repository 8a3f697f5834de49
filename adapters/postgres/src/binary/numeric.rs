//! `numeric`: decimal digits in groups of four, exact in both directions.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use tidegate_core::Result;

use super::{malformed, unfit};
use crate::cursor::Cursor;

/// Decimal digits in one group.
const GROUP: usize = 4;
const GROUP_MAX: u16 = 9999;

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const PLUS_INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;

/// The server's limits for a number without declared precision.
const INTEGER_DIGITS_MAX: i64 = 131_072;
const FRACTION_DIGITS_MAX: i64 = 16_383;

/// Reads a `numeric` as the text the server shows: with all the digits of its scale, never with an exponent.
///
/// # Errors
/// `stream-malformed`.
pub(crate) fn numeric(bytes: &[u8]) -> Result<String> {
    let mut cursor = Cursor::new(bytes);
    let groups = cursor.u16("groups")?;
    let weight = cursor.i16("weight")?;
    let sign = cursor.u16("sign")?;
    let scale = usize::from(cursor.u16("scale")?);
    let (digits, _) = cursor.bytes(usize::from(groups) * 2, "digits")?.as_chunks::<2>();
    cursor.end()?;
    match sign {
        POSITIVE | NEGATIVE => {}
        NAN => return Ok("NaN".to_owned()),
        PLUS_INFINITY => return Ok("Infinity".to_owned()),
        MINUS_INFINITY => return Ok("-Infinity".to_owned()),
        _ => return Err(malformed("numeric", bytes)),
    }
    if scale as i64 > FRACTION_DIGITS_MAX || digits.iter().any(|group| u16::from_be_bytes(*group) > GROUP_MAX)
    {
        return Err(malformed("numeric", bytes));
    }
    // The group with the weight `index`; those that are not sent are zero.
    let group = |index: i32| {
        usize::try_from(i32::from(weight) - index)
            .ok()
            .and_then(|place| digits.get(place))
            .map_or(0, |group| u16::from_be_bytes(*group))
    };

    let mut text = String::with_capacity(GROUP * (usize::from(groups) + 1) + scale + 3);
    if sign == NEGATIVE {
        text.push('-');
    }
    // Writing to a text cannot fail.
    if weight < 0 {
        text.push('0');
    } else {
        let _ = write!(text, "{}", group(weight.into()));
        for index in (0..i32::from(weight)).rev() {
            let _ = write!(text, "{:04}", group(index));
        }
    }
    if scale > 0 {
        text.push('.');
        let end = text.len() + scale;
        let mut index = -1;
        while text.len() < end {
            let _ = write!(text, "{:04}", group(index));
            index -= 1;
        }
        // Digits are ASCII, so any length is the end of one.
        text.truncate(end);
    }
    Ok(text)
}

/// Writes a decimal text as a `numeric`: digits with an optional sign, fraction and exponent, or `NaN`,
/// `Infinity`, `-Infinity`. The scale is the number of digits after the point, as the server itself would take it.
///
/// # Errors
/// `value-unfit` for what is no such text or beyond the server's limits. Nothing is written then.
pub(crate) fn put_numeric(out: &mut BytesMut, text: &str) -> Result<()> {
    let special = match text.to_ascii_lowercase().as_str() {
        "nan" => Some(NAN),
        "infinity" | "+infinity" | "inf" | "+inf" => Some(PLUS_INFINITY),
        "-infinity" | "-inf" => Some(MINUS_INFINITY),
        _ => None,
    };
    if let Some(sign) = special {
        put(out, 0, 0, sign, 0, std::iter::empty());
        return Ok(());
    }
    let number = Decimal::parse(text).ok_or_else(|| unfit("this is not a decimal number"))?;
    let scale = u16::try_from(number.scale).ok().filter(|scale| i64::from(*scale) <= FRACTION_DIGITS_MAX);
    let (Some(scale), true) = (scale, number.point <= INTEGER_DIGITS_MAX) else {
        return Err(unfit("a number has more digits than numeric can hold"));
    };
    if number.digits.is_empty() {
        put(out, 0, 0, POSITIVE, scale, std::iter::empty());
        return Ok(());
    }

    // Groups are counted from the point, so the first and the last may be filled up with zeros.
    let group = GROUP as i64;
    let first = number.point.div_euclid(group) + i64::from(number.point.rem_euclid(group) != 0) - 1;
    let lead = (first + 1) * group - number.point;
    let count = (lead + number.digits.len() as i64 + group - 1) / group;
    let (Ok(weight), Ok(groups)) = (i16::try_from(first), u16::try_from(count)) else {
        return Err(unfit("a number has more digits than numeric can hold"));
    };
    let digit = |place: i64| {
        let digit = usize::try_from(place - lead).ok().and_then(|place| number.digits.get(place));
        u16::from(digit.copied().unwrap_or_default())
    };
    let values =
        (0..count).map(|index| (0..group).fold(0, |value, place| value * 10 + digit(index * group + place)));
    put(out, groups, weight, if number.negative { NEGATIVE } else { POSITIVE }, scale, values);
    Ok(())
}

fn put(
    out: &mut BytesMut,
    groups: u16,
    weight: i16,
    sign: u16,
    scale: u16,
    values: impl Iterator<Item = u16>,
) {
    out.put_u16(groups);
    out.put_i16(weight);
    out.put_u16(sign);
    out.put_u16(scale);
    values.for_each(|value| out.put_u16(value));
}

/// `0.DIGITS * 10^point`, without zeros at either end of the digits.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    point: i64,
    /// Digits after the point as written.
    scale: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            // A bound far beyond every limit keeps the sums below from overflowing.
            Some((mantissa, exponent)) => {
                (mantissa, exponent.parse::<i64>().ok().filter(|exponent| exponent.abs() < 1_000_000)?)
            }
            None => (text, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if integer.len() + fraction.len() == 0 {
            return None;
        }
        let mut digits = Vec::with_capacity(integer.len() + fraction.len());
        for byte in integer.bytes().chain(fraction.bytes()) {
            digits.push(char::from(byte).to_digit(10).and_then(|digit| u8::try_from(digit).ok())?);
        }
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        digits.drain(..zeros);
        while digits.last() == Some(&0) {
            digits.pop();
        }
        let point = if digits.is_empty() { 0 } else { integer.len() as i64 - zeros as i64 + exponent };
        Some(Self { negative, digits, point, scale: (fraction.len() as i64 - exponent).max(0) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round(text: &str) -> Result<String> {
        let mut out = BytesMut::new();
        put_numeric(&mut out, text)?;
        numeric(&out)
    }

    #[test]
    fn a_number_keeps_its_digits_and_its_scale() {
        for (text, expect) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.000", "0.000"),
            ("1", "1"),
            ("-1.50", "-1.50"),
            ("10000", "10000"),
            ("100000000.00010", "100000000.00010"),
            ("0.0000000001", "0.0000000001"),
            (".5", "0.5"),
            ("5.", "5"),
            ("+007.1", "7.1"),
            ("1e5", "100000"),
            ("1.25e1", "12.5"),
            ("1.2e-3", "0.0012"),
            ("0e10", "0"),
            ("nan", "NaN"),
            ("-inf", "-Infinity"),
            ("Infinity", "Infinity"),
        ] {
            assert_eq!(round(text).expect(text), expect, "{text}");
        }
        for text in
            ["", "-", ".", "e5", "1e", "1e5000000", "1 ", "0x1", "1.2.3", "--1", "1e131072", "1e-16384", "१"]
        {
            assert!(round(text).is_err(), "{text}");
        }
        assert!(round("1e131071").is_ok() && round("1e-16383").is_ok());
        assert!(numeric(&[0; 7]).is_err() && numeric(&[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10]).is_err());
    }

    proptest! {
        #[test]
        fn canonical_text_is_a_fixed_point(text in "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,40})?") {
            let expect = if text.trim_start_matches('-').bytes().all(|byte| matches!(byte, b'0' | b'.')) {
                text.trim_start_matches('-').to_owned()
            } else {
                text.clone()
            };
            prop_assert_eq!(round(&text).unwrap(), expect);
        }

        #[test]
        fn random_bytes_and_texts_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in ".{0,20}") {
            let _ = numeric(&bytes);
            let _ = round(&text);
        }
    }
}
