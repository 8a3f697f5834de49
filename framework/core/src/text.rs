//! Text forms of values, for stores that have no type of their own for them. They are exact, and sort as the values do.
//!
//! - a date: `2024-02-29`; before year 0 and from 10000 on with a sign: `-0043-03-15`, `+12024-01-01`
//! - a time: `23:59:59.000000`; the end of a day is `24:00:00.000000`
//! - a timestamp: `2024-02-29 23:59:59.000000`, with a zone `…Z`
//! - the two infinities: `infinity`, `-infinity`
//! - a list: JSON; decimals, dates and bytes (in hexadecimal) as strings

use std::fmt::Write as _;

use crate::value::Value;

const DAY: i64 = 86_400_000_000;

/// A date, by its days since 1970-01-01.
pub fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => day(i64::from(days)),
    }
}

/// A time, by its microseconds since midnight.
pub fn time(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    format!("{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A timestamp, by its microseconds since 1970.
pub fn timestamp(micros: i64) -> String {
    match micros {
        Value::INFINITY => "infinity".to_owned(),
        Value::NEG_INFINITY => "-infinity".to_owned(),
        micros => format!("{} {}", day(micros.div_euclid(DAY)), time(micros.rem_euclid(DAY))),
    }
}

/// An instant, by its microseconds since 1970 UTC.
pub fn timestamp_tz(micros: i64) -> String {
    let mut text = timestamp(micros);
    if !text.ends_with("infinity") {
        text.push('Z');
    }
    text
}

/// The text of a number without an exponent: `1.05E+3` is `1050`.
pub fn decimal(text: &str) -> String {
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

/// A list as JSON; `None` if it holds a number that JSON does not have.
pub fn list(values: &[Value<'_>]) -> Option<String> {
    let mut out = String::from("[");
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(v) => write!(out, "{v}").ok()?,
            Value::Int(v) => write!(out, "{v}").ok()?,
            Value::Float32(v) if v.is_finite() => write!(out, "{v:?}").ok()?,
            Value::Float(v) if v.is_finite() => write!(out, "{v:?}").ok()?,
            Value::Float32(_) | Value::Float(_) => return None,
            Value::Json(v) => out.push_str(v),
            Value::Array(inner) => out.push_str(&list(inner)?),
            Value::Date(v) => write!(out, "\"{}\"", date(*v)).ok()?,
            Value::Time(v) => write!(out, "\"{}\"", time(*v)).ok()?,
            Value::Timestamp(v) => write!(out, "\"{}\"", timestamp(*v)).ok()?,
            Value::TimestampTz(v) => write!(out, "\"{}\"", timestamp_tz(*v)).ok()?,
            other => out.push_str(&serde_json::to_string(&other.to_string()).ok()?),
        }
    }
    out.push(']');
    Some(out)
}

/// A value of any type, so that values that differ have texts that differ: text that is no JSON stands as it is,
/// everything else as JSON, of which kinds that JSON does not have are objects with one field (`{"$decimal":"1.10"}`).
pub fn any(value: &Value<'_>) -> String {
    match value {
        Value::Text(v) if serde_json::from_str::<serde::de::IgnoredAny>(v).is_err() => v.to_string(),
        other => tagged_json(other),
    }
}

fn tagged_json(value: &Value<'_>) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let tagged = |tag: &str, value: String| format!("{{\"${tag}\":{}}}", text(&value));
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(v) => v.to_string(),
        Value::Int(v) => v.to_string(),
        Value::Float32(v) if v.is_finite() => format!("{v:?}"),
        Value::Float(v) if v.is_finite() => format!("{v:?}"),
        Value::Float32(_) | Value::Float(_) => tagged("float", value.to_string()),
        Value::Decimal(v) => tagged("decimal", v.to_string()),
        Value::Text(v) => text(v),
        Value::Bytes(_) => tagged("bytes", value.to_string()),
        Value::Uuid(_) => tagged("uuid", value.to_string()),
        Value::Date(_) => tagged("date", value.to_string()),
        Value::Time(_) => tagged("time", value.to_string()),
        Value::Timestamp(_) => tagged("timestamp", value.to_string()),
        Value::TimestampTz(_) => tagged("timestamptz", value.to_string()),
        Value::Json(v) => v.to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(tagged_json).collect::<Vec<_>>().join(",")),
    }
}

/// A day of the proleptic Gregorian calendar. Method: Howard Hinnant, "chrono-compatible low-level date algorithms".
fn day(days: i64) -> String {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    match year {
        0..=9_999 => format!("{year:04}-{month:02}-{day:02}"),
        10_000.. => format!("+{year}-{month:02}-{day:02}"),
        _ => format!("-{:04}-{month:02}-{day:02}", -year),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_instants_have_their_text() {
        for (days, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (19_782, "2024-02-29"),
            (11_016, "2000-02-29"),
            (-719_468, "0000-03-01"),
            (-719_469, "0000-02-29"),
            (-735_160, "-0043-03-15"),
            (2_932_897, "+10000-01-01"),
            (i32::MAX, "infinity"),
            (i32::MIN, "-infinity"),
        ] {
            assert_eq!(date(days), text, "{days}");
        }
        for (micros, text) in [
            (0, "1970-01-01 00:00:00.000000"),
            (-1, "1969-12-31 23:59:59.999999"),
            (1_709_251_199_000_001, "2024-02-29 23:59:59.000001"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
        ] {
            assert_eq!(timestamp(micros), text, "{micros}");
        }
        assert_eq!(timestamp_tz(0), "1970-01-01 00:00:00.000000Z");
        assert_eq!(timestamp_tz(i64::MIN), "-infinity");
        assert_eq!(time(DAY), "24:00:00.000000");
    }

    #[test]
    fn a_text_of_any_value_is_of_that_value_alone() {
        for (value, text) in [
            (Value::Text("507f1f77bcf86cd799439011".into()), "507f1f77bcf86cd799439011"),
            (Value::Text("4".into()), "\"4\""),
            (Value::Int(4), "4"),
            (Value::Float(4.0), "4.0"),
            (Value::Float(f64::NAN), "{\"$float\":\"NaN\"}"),
            (Value::Text("null".into()), "\"null\""),
            (Value::Text(String::new().into()), ""),
            (Value::Json("{\"a\":1}".into()), "{\"a\":1}"),
            (Value::Text("{\"a\":1}".into()), "\"{\\\"a\\\":1}\""),
            (Value::Bytes((&b"\0\xff"[..]).into()), "{\"$bytes\":\"00ff\"}"),
            (Value::Array(vec![Value::Text("a".into()), Value::Int(1)]), "[\"a\",1]"),
        ] {
            assert_eq!(any(&value), text, "{value:?}");
        }
    }

    #[test]
    fn lists_are_json() {
        let values = [
            Value::Null,
            Value::Int(-1),
            Value::Float(0.1),
            Value::Text("a\"b".into()),
            Value::Decimal("1.00".into()),
            Value::Bytes((&b"\0\xff"[..]).into()),
            Value::Array(vec![Value::Bool(true)]),
        ];
        assert_eq!(list(&values).unwrap(), r#"[null,-1,0.1,"a\"b","1.00","00ff",[true]]"#);
        assert_eq!(list(&[Value::Float(f64::NAN)]), None);
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
            assert_eq!(decimal(text), expected);
        }
    }
}
