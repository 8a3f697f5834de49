//! Dates, times and intervals, counted from the server's epoch, 2000-01-01.
//!
//! `Display` writes what the server shows with `DateStyle` ISO, `IntervalStyle` postgres and the zone UTC.

use std::fmt;

#[cfg(test)]
use bytes::BufMut as _;
use bytes::BytesMut;
use tidegate_core::Result;

use super::{int4, int8, malformed, put_int4, put_int8, unfit};
use crate::cursor::Cursor;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// From 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * DAY;

/// 4714-11-24 BC, the first day of both types.
const DATE_FIRST: i32 = -2_451_545;
const TIMESTAMP_FIRST: i64 = DATE_FIRST as i64 * DAY;
/// The last day of `date` is 5874897-12-31, the last of `timestamp` 294276-12-31.
const DATE_LAST: i32 = 2_145_031_948;
const TIMESTAMP_LAST: i64 = 9_223_371_331_199_999_999;

/// A `date`: days since 2000-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Date(pub(crate) i32);

/// A `timestamp` or a `timestamptz`: microseconds since 2000-01-01 (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Timestamp(pub(crate) i64);

/// A `time`: microseconds since midnight, up to 24:00:00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time(pub(crate) i64);

/// A `timetz`: a time and its distance from UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TimeTz {
    /// The time on the clock.
    pub(crate) time: Time,
    /// How far the clock is ahead of UTC, in seconds.
    pub(crate) ahead_seconds: i32,
}

/// An `interval`: three numbers that do not convert into each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Interval {
    /// Months, years included.
    pub(crate) months: i32,
    /// Days.
    pub(crate) days: i32,
    /// Microseconds.
    pub(crate) micros: i64,
}

impl Date {
    /// After all dates.
    pub(crate) const INFINITY: Self = Self(i32::MAX);
    /// Before all dates.
    pub(crate) const MINUS_INFINITY: Self = Self(i32::MIN);

    /// Reads a `date`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        int4(bytes).map(Self)
    }

    /// Writes a `date`.
    pub(crate) fn put(self, out: &mut BytesMut) {
        put_int4(out, self.0);
    }

    /// A date by its distance from 1970-01-01.
    ///
    /// # Errors
    /// `value-unfit` outside of the server's calendar.
    pub(crate) fn from_unix_days(days: i64) -> Result<Self> {
        i32::try_from(days - i64::from(EPOCH_DAYS))
            .ok()
            .filter(|days| (DATE_FIRST..=DATE_LAST).contains(days))
            .map(Self)
            .ok_or_else(|| unfit("a date is outside of PostgreSQL's calendar"))
    }

    /// The distance from 1970-01-01; nothing for the infinities.
    pub(crate) fn unix_days(self) -> Option<i64> {
        self.is_finite().then(|| i64::from(self.0) + i64::from(EPOCH_DAYS))
    }

    /// Whether it is a day of the calendar.
    pub(crate) fn is_finite(self) -> bool {
        self != Self::INFINITY && self != Self::MINUS_INFINITY
    }
}

impl Timestamp {
    /// After all instants.
    pub(crate) const INFINITY: Self = Self(i64::MAX);
    /// Before all instants.
    pub(crate) const MINUS_INFINITY: Self = Self(i64::MIN);

    /// Reads a `timestamp` or a `timestamptz`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        int8(bytes).map(Self)
    }

    /// Writes a `timestamp` or a `timestamptz`.
    pub(crate) fn put(self, out: &mut BytesMut) {
        put_int8(out, self.0);
    }

    /// An instant by its distance from 1970-01-01 in microseconds.
    ///
    /// # Errors
    /// `value-unfit` outside of the server's calendar.
    pub(crate) fn from_unix_micros(micros: i64) -> Result<Self> {
        micros
            .checked_sub(EPOCH_MICROS)
            .filter(|micros| (TIMESTAMP_FIRST..=TIMESTAMP_LAST).contains(micros))
            .map(Self)
            .ok_or_else(|| unfit("an instant is outside of PostgreSQL's calendar"))
    }

    /// The distance from 1970-01-01 in microseconds; nothing for the infinities and for the last 30 years before
    /// the end of the calendar, which is beyond an `i64`.
    pub(crate) fn unix_micros(self) -> Option<i64> {
        self.is_finite().then(|| self.0.checked_add(EPOCH_MICROS)).flatten()
    }

    /// Whether it is an instant of the calendar.
    pub(crate) fn is_finite(self) -> bool {
        self != Self::INFINITY && self != Self::MINUS_INFINITY
    }

    /// The text of a `timestamptz`, in UTC; `Display` writes that of a `timestamp`.
    pub(crate) fn to_text_utc(self) -> String {
        if !self.is_finite() {
            return self.to_string();
        }
        match self.to_string().strip_suffix(" BC") {
            Some(text) => format!("{text}+00 BC"),
            None => format!("{self}+00"),
        }
    }
}

impl Time {
    /// Reads a `time`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        int8(bytes)
            .ok()
            .filter(|micros| (0..=DAY).contains(micros))
            .map(Self)
            .ok_or_else(|| malformed("time", bytes))
    }

    /// Writes a `time`.
    pub(crate) fn put(self, out: &mut BytesMut) {
        put_int8(out, self.0);
    }
}

impl TimeTz {
    /// Reads a `timetz`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let (time, zone) = bytes.split_at_checked(8).ok_or_else(|| malformed("timetz", bytes))?;
        // The server counts westward.
        let ahead = int4(zone)?.checked_neg().ok_or_else(|| malformed("timetz", bytes))?;
        Ok(Self { time: Time::read(time)?, ahead_seconds: ahead })
    }

    /// Writes a `timetz`.
    #[cfg(test)]
    pub(crate) fn put(self, out: &mut BytesMut) {
        self.time.put(out);
        put_int4(out, self.ahead_seconds.wrapping_neg());
    }
}

impl Interval {
    /// Longer than all intervals, from version 17 on.
    pub(crate) const INFINITY: Self = Self { months: i32::MAX, days: i32::MAX, micros: i64::MAX };
    /// Its negative.
    pub(crate) const MINUS_INFINITY: Self = Self { months: i32::MIN, days: i32::MIN, micros: i64::MIN };

    /// Reads an `interval`.
    ///
    /// # Errors
    /// `stream-malformed`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        let micros = cursor.i64("microseconds")?;
        let days = cursor.i32("days")?;
        let months = cursor.i32("months")?;
        cursor.end()?;
        Ok(Self { months, days, micros })
    }

    /// Writes an `interval`.
    #[cfg(test)]
    pub(crate) fn put(self, out: &mut BytesMut) {
        out.put_i64(self.micros);
        out.put_i32(self.days);
        out.put_i32(self.months);
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INFINITY => f.write_str("infinity"),
            Self::MINUS_INFINITY => f.write_str("-infinity"),
            Self(days) => {
                let (text, era) = day(days.into());
                write!(f, "{text}{era}")
            }
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INFINITY => f.write_str("infinity"),
            Self::MINUS_INFINITY => f.write_str("-infinity"),
            Self(micros) => {
                let (text, era) = day(micros.div_euclid(DAY));
                write!(f, "{text} {}{era}", Time(micros.rem_euclid(DAY)))
            }
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        clock(f, self.0.unsigned_abs())
    }
}

impl fmt::Display for TimeTz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.ahead_seconds < 0 { '-' } else { '+' };
        let ahead = self.ahead_seconds.unsigned_abs();
        write!(f, "{}{sign}{:02}", self.time, ahead / 3600)?;
        if !ahead.is_multiple_of(3600) {
            write!(f, ":{:02}", ahead / 60 % 60)?;
        }
        if !ahead.is_multiple_of(60) {
            write!(f, ":{:02}", ahead % 60)?;
        }
        Ok(())
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INFINITY => return f.write_str("infinity"),
            Self::MINUS_INFINITY => return f.write_str("-infinity"),
            _ => {}
        }
        // A plus sign follows a negative part, as the server writes it.
        let mut first = true;
        let mut negative = false;
        for (value, unit) in [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")] {
            if value == 0 {
                continue;
            }
            let space = if first { "" } else { " " };
            let sign = if negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            write!(f, "{space}{sign}{value} {unit}{plural}")?;
            (first, negative) = (false, value < 0);
        }
        if first || self.micros != 0 {
            let space = if first { "" } else { " " };
            let sign = match (self.micros < 0, negative) {
                (true, _) => "-",
                (false, true) => "+",
                (false, false) => "",
            };
            write!(f, "{space}{sign}")?;
            clock(f, self.micros.unsigned_abs())?;
        }
        Ok(())
    }
}

/// `HH:MM:SS` and as much of a fraction as there is.
fn clock(f: &mut fmt::Formatter<'_>, micros: u64) -> fmt::Result {
    let second = SECOND.unsigned_abs();
    let (seconds, fraction) = (micros / second, micros % second);
    write!(f, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    if fraction != 0 {
        write!(f, ".{}", format!("{fraction:06}").trim_end_matches('0'))?;
    }
    Ok(())
}

/// A day of the Gregorian calendar, reaching back beyond its invention, and the mark of its era.
fn day(since_2000: i64) -> (String, &'static str) {
    // Eras of 400 years that begin on 1 March, so that the leap day is the last of its year.
    let days = since_2000 + i64::from(EPOCH_DAYS) + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // There is no year zero: 1 BC comes before 1 AD.
    let (year, mark) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), mark)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instants_are_written_as_the_server_does() {
        for (value, expect) in [
            (Timestamp(0), "2000-01-01 00:00:00"),
            (Timestamp(-1), "1999-12-31 23:59:59.999999"),
            (Timestamp::from_unix_micros(1_500_000).unwrap(), "1970-01-01 00:00:01.5"),
            (Timestamp(TIMESTAMP_FIRST), "4714-11-24 00:00:00 BC"),
            (Timestamp(TIMESTAMP_LAST), "294276-12-31 23:59:59.999999"),
            (Timestamp::MINUS_INFINITY, "-infinity"),
        ] {
            assert_eq!(value.to_string(), expect);
        }
        assert_eq!(Timestamp(TIMESTAMP_FIRST).to_text_utc(), "4714-11-24 00:00:00+00 BC");
        assert_eq!(Timestamp::INFINITY.to_text_utc(), "infinity");
        assert_eq!(Date(DATE_FIRST).to_string(), "4714-11-24 BC");
        assert_eq!(Date(DATE_LAST).to_string(), "5874897-12-31");
        assert_eq!(Date(59).to_string(), "2000-02-29");
        assert_eq!(Time(DAY).to_string(), "24:00:00");
        assert!(Timestamp::from_unix_micros(i64::MAX).is_ok());
        assert!(
            Timestamp::from_unix_micros(i64::MIN).is_err() && Date::from_unix_days(i64::MAX / 2).is_err()
        );
        assert_eq!((Timestamp::INFINITY.unix_micros(), Date::INFINITY.unix_days()), (None, None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(days: i32, micros: i64, months: i32, time in 0..=DAY, ahead in -57_599..=57_599) {
            let mut out = BytesMut::new();
            Date(days).put(&mut out);
            prop_assert_eq!(Date::read(&out.split()).unwrap(), Date(days));
            Timestamp(micros).put(&mut out);
            prop_assert_eq!(Timestamp::read(&out.split()).unwrap(), Timestamp(micros));
            let timetz = TimeTz { time: Time(time), ahead_seconds: ahead };
            timetz.put(&mut out);
            prop_assert_eq!(TimeTz::read(&out.split()).unwrap(), timetz);
            let interval = Interval { months, days, micros };
            interval.put(&mut out);
            prop_assert_eq!(Interval::read(&out.split()).unwrap(), interval);
            // None of the texts may overflow either.
            let _ = (Date(days).to_string(), Timestamp(micros).to_text_utc(), interval.to_string(), timetz.to_string());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = TimeTz::read(&bytes).map(|value| value.to_string());
            let _ = Interval::read(&bytes).map(|value| value.to_string());
            let _ = Time::read(&bytes).map(|value| value.to_string());
        }
    }
}
