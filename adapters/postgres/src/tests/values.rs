//! The server is asked for a value in binary and in text; ours of the first has to be the second.

use std::error::Error;

use crate::binary::array::{Array, Dimension, put_array};
use crate::binary::network::{Inet, mac};
use crate::binary::time::{Date, Interval, Time, TimeTz, Timestamp};
use crate::binary::{self, bits::bits, numeric};
use crate::connect::Session;
use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::session;

/// A value exactly as it stands on the wire.
#[derive(Debug)]
struct Raw(Vec<u8>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

impl ToSql for Raw {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn written(put: impl FnOnce(&mut BytesMut)) -> Raw {
    let mut out = BytesMut::new();
    put(&mut out);
    Raw(out.to_vec())
}

async fn in_utc() -> Session {
    let session = session().await;
    session
        .batch_execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'")
        .await
        .unwrap();
    session
}

async fn check(session: &Session, kind: &str, literals: &[&str], text: impl Fn(&[u8]) -> String) {
    for literal in literals {
        let sql = format!("SELECT v, v::text FROM (SELECT '{literal}'::{kind} AS v) AS value");
        let row = session.query_one(&sql, &[]).await.unwrap();
        let (raw, expect): (Raw, String) = (row.get(0), row.get(1));
        assert_eq!(text(&raw.0), expect, "{kind} {literal}");
    }
}

const NUMERICS: &[&str] = &[
    "0",
    "0.000",
    "1",
    "-1",
    "9999",
    "10000",
    "12345678901234567890.0123456789",
    "-0.00001",
    "1e-20",
    "1e30",
    "NaN",
    "Infinity",
    "-Infinity",
    "0.1",
    "100000000",
    "99990000",
    "0.00010000",
    "123456.7",
    "-98765.43210",
    "79228162514264337593543950336",
    "1e-16383",
    "1e131071",
];

const TIMESTAMPS: &[&str] = &[
    "2000-01-01",
    "1999-12-31 23:59:59.999999",
    "1970-01-01",
    "2024-02-29 12:34:56.1",
    "infinity",
    "-infinity",
    "0001-01-01 00:00:00",
    "0001-12-31 23:59:59.5 BC",
    "0044-03-15 10:00:00 BC",
    "4714-11-24 BC",
    "294276-12-31 23:59:59.999999",
    "1900-02-28",
    "2100-03-01",
    "12345-06-07 08:09:10.000001",
];

#[tokio::test]
async fn our_text_of_the_binary_form_is_the_servers() {
    let session = in_utc().await;
    check(&session, "numeric", NUMERICS, |raw| numeric::numeric(raw).unwrap()).await;
    check(&session, "timestamp", TIMESTAMPS, |raw| Timestamp::read(raw).unwrap().to_string()).await;
    check(&session, "timestamptz", TIMESTAMPS, |raw| Timestamp::read(raw).unwrap().to_text_utc()).await;
    let dates = [
        "2000-01-01",
        "2024-02-29",
        "infinity",
        "-infinity",
        "0001-01-01 BC",
        "4714-11-24 BC",
        "5874897-12-31",
    ];
    check(&session, "date", &dates, |raw| Date::read(raw).unwrap().to_string()).await;
    let times = ["00:00", "23:59:59.999999", "24:00:00", "01:02:03.4"];
    check(&session, "time", &times, |raw| Time::read(raw).unwrap().to_string()).await;
    let times = ["00:00+00", "23:59:59.999999-12:30", "01:02:03.4+15:59:59", "24:00-07", "10:00-00:30"];
    check(&session, "timetz", &times, |raw| TimeTz::read(raw).unwrap().to_string()).await;
    let intervals = [
        "0",
        "1 year",
        "1 year 1 mon 1 day 00:00:01",
        "2 years -3 mons",
        "-1 year +2 days",
        "-1 mon 3 days -04:05:06.7",
        "-3 days 00:00:01",
        "1 day -00:00:00.000001",
        "178000000 years",
        "-178000000 years 11 mons",
        "100:00:00.5",
        "-11 mons",
        "1 mon -1 day",
        "2562047788:00:54.775807",
    ];
    check(&session, "interval", &intervals, |raw| Interval::read(raw).unwrap().to_string()).await;
    let addresses = [
        "1.2.3.4",
        "1.2.3.4/24",
        "0.0.0.0/0",
        "::",
        "::1",
        "::1/64",
        "::2:3",
        "2001:db8::1",
        "2001:db8:0:0:1:0:0:1",
        "::ffff:1.2.3.4",
        "::1.2.3.4",
        "1::",
        "1:0:2:0:3:0:4:0",
        "0:0:1::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "::ffff:0:1.2.3.4",
        "1:2:3:4:5:6::",
        "::3:4:5:6:7:8",
    ];
    check(&session, "inet", &addresses, |raw| {
        // The cast to text shows a prefix that the output function leaves out.
        let inet = Inet::read(raw).unwrap();
        let text = inet.to_string();
        if text.contains('/') { text } else { format!("{text}/{}", inet.prefix) }
    })
    .await;
    check(&session, "cidr", &["10.0.0.0/8", "1.2.3.4/32", "2001:db8::/32", "::/0"], |raw| {
        Inet::read(raw).unwrap().to_string()
    })
    .await;
    check(&session, "macaddr", &["08:00:2b:01:02:03"], |raw| mac(raw).unwrap()).await;
    check(&session, "macaddr8", &["08:00:2b:01:02:03:04:05"], |raw| mac(raw).unwrap()).await;
    check(&session, "varbit", &["", "1", "10101010", "101010101"], |raw| bits(raw).unwrap()).await;
    check(&session, "bit(9)", &["000000001"], |raw| bits(raw).unwrap()).await;
    check(&session, "jsonb", &[r#"{"b": 1, "a": [1.50, null]}"#], |raw| {
        binary::jsonb(raw).unwrap().to_owned()
    })
    .await;
    check(&session, "name", &["x"], |raw| binary::text(raw).unwrap().to_owned()).await;
    check(&session, "\"char\"", &["x"], |raw| char::from(binary::char(raw).unwrap()).to_string()).await;
    check(&session, "oid", &["4294967295"], |raw| binary::oid(raw).unwrap().to_string()).await;
    session.close().await;
}

/// The output function itself, without the cast's prefix, is what a text stream carries.
#[tokio::test]
async fn an_address_alone_is_written_without_its_prefix() {
    let session = in_utc().await;
    let row = session
        .query_one("SELECT v, format('%s', v) FROM (SELECT '::1'::inet AS v) AS value", &[])
        .await
        .unwrap();
    assert_eq!(Inet::read(&row.get::<_, Raw>(0).0).unwrap().to_string(), row.get::<_, String>(1));
}

/// What we write in binary the server reads back as the same text.
#[tokio::test]
async fn the_server_reads_what_we_write() {
    let session = in_utc().await;
    for text in NUMERICS {
        let raw = written(|out| numeric::put_numeric(out, text).unwrap());
        let row = session
            .query_one(&format!("SELECT $1::numeric::text, '{text}'::numeric::text"), &[&raw])
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), row.get::<_, String>(1), "{text}");
    }
    let mut list = BytesMut::new();
    let dimensions = [Dimension { length: 2, lower: 0 }, Dimension { length: 2, lower: 1 }];
    let elements = [Some("a"), None, Some("c,\"d"), Some("")];
    put_array(&mut list, Type::TEXT.oid(), &dimensions, &elements, |out, text| binary::put_text(out, text))
        .unwrap();
    for (kind, raw, expect) in [
        ("bool", written(|out| binary::put_bool(out, true)), "true"),
        ("int2", written(|out| binary::put_int2(out, i16::MIN)), "-32768"),
        ("int4", written(|out| binary::put_int4(out, -7)), "-7"),
        ("int8", written(|out| binary::put_int8(out, i64::MIN)), "-9223372036854775808"),
        ("float4", written(|out| binary::put_float4(out, 1.5)), "1.5"),
        ("float8", written(|out| binary::put_float8(out, f64::NEG_INFINITY)), "-Infinity"),
        ("text", written(|out| binary::put_text(out, "é").unwrap()), "é"),
        ("bytea", written(|out| binary::put_bytea(out, &[0, 255])), "\\x00ff"),
        ("uuid", written(|out| binary::put_uuid(out, [0x11; 16])), "11111111-1111-1111-1111-111111111111"),
        ("json", written(|out| binary::put_text(out, "{\"a\" :1}").unwrap()), "{\"a\" :1}"),
        ("jsonb", written(|out| binary::put_jsonb(out, "{\"a\" :1}").unwrap()), "{\"a\": 1}"),
        ("date", written(|out| Date::from_unix_days(-1).unwrap().put(out)), "1969-12-31"),
        ("date", written(|out| Date::MINUS_INFINITY.put(out)), "-infinity"),
        ("time", written(|out| Time(86_399_999_999).put(out)), "23:59:59.999999"),
        ("timetz", written(|out| TimeTz { time: Time(0), ahead_seconds: -5400 }.put(out)), "00:00:00-01:30"),
        (
            "timestamp",
            written(|out| Timestamp::from_unix_micros(1).unwrap().put(out)),
            "1970-01-01 00:00:00.000001",
        ),
        ("timestamptz", written(|out| Timestamp::INFINITY.put(out)), "infinity"),
        (
            "interval",
            written(|out| Interval { months: -13, days: 1, micros: -1 }.put(out)),
            "-1 years -1 mons +1 day -00:00:00.000001",
        ),
        ("text[]", Raw(list.to_vec()), "[0:1][1:2]={{a,NULL},{\"c,\\\"d\",\"\"}}"),
    ] {
        let row = session.query_one(&format!("SELECT $1::{kind}::text, $1::{kind}"), &[&raw]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), expect, "{kind}");
        if kind != "jsonb" {
            assert_eq!(row.get::<_, Raw>(1).0, raw.0, "{kind}");
        }
    }
    session.close().await;
}

#[tokio::test]
async fn arrays_keep_their_dimensions() {
    let session = in_utc().await;
    for (literal, dimensions, elements) in [
        ("{}", vec![], vec![]),
        ("{1,NULL,3}", vec![(3, 1)], vec![Some(1), None, Some(3)]),
        ("[-1:0]={1,2}", vec![(2, -1)], vec![Some(1), Some(2)]),
        (
            "{{1,2},{3,4},{5,6}}",
            vec![(3, 1), (2, 1)],
            vec![Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)],
        ),
    ] {
        let row = session.query_one(&format!("SELECT '{literal}'::int4[]"), &[]).await.unwrap();
        let raw: Raw = row.get(0);
        let array = Array::read(&raw.0).unwrap();
        assert_eq!(array.element_oid(), Type::INT4.oid());
        let seen: Vec<(i32, i32)> = array.dimensions().iter().map(|one| (one.length, one.lower)).collect();
        assert_eq!(seen, dimensions, "{literal}");
        let seen: Vec<_> =
            array.elements().map(|element| element.map(|raw| binary::int4(raw).unwrap())).collect();
        assert_eq!(seen, elements, "{literal}");
    }
    session.close().await;
}
