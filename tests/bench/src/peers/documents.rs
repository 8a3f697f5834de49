//! A bare loop from PostgreSQL to MongoDB: the drivers, and nothing that would let it go on after a crash.

use futures::TryStreamExt as _;
use mongodb::Collection;
use mongodb::bson::raw::cstr;
use mongodb::bson::{DateTime, Decimal128, RawDocumentBuf, serialize_to_raw_document_buf};
use tokio::task::JoinSet;
use tokio_postgres::binary_copy::BinaryCopyOutStream;
use tokio_postgres::types::{FromSql, Type};

use crate::Result;
use crate::ground::connect;

/// Documents of one insert.
const BATCH: usize = 5_000;
/// Inserts under way while the next one is made: one each core.
const AT_ONCE: usize = 2;
/// From 1970 to 2000, in milliseconds.
const EPOCH: i64 = 946_684_800_000;

/// The bytes as they come.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Copies the table out and inserts it; gives how many documents.
pub async fn load(url: &str, target: &Collection<RawDocumentBuf>) -> Result<u64> {
    let client = connect(url).await?;
    // The text of a number is the shortest way to a decimal of the document.
    let sql = "COPY (SELECT id, s, n::text, ts, j, upd FROM bench) TO STDOUT (FORMAT binary)";
    let types = [Type::INT8, Type::TEXT, Type::TEXT, Type::TIMESTAMPTZ, Type::JSONB, Type::TIMESTAMPTZ];
    let rows = BinaryCopyOutStream::new(client.copy_out(sql).await?, &types);
    let mut rows = std::pin::pin!(rows);
    let (mut batch, mut count) = (Vec::with_capacity(BATCH), 0);
    let mut inserts = JoinSet::new();
    loop {
        let row = rows.try_next().await?;
        let is_end = row.is_none();
        if let Some(row) = row {
            let mut document = RawDocumentBuf::new();
            document.append(cstr!("_id"), row.try_get::<i64>(0)?);
            document.append(cstr!("s"), row.try_get::<&str>(1)?);
            document.append(cstr!("n"), row.try_get::<&str>(2)?.parse::<Decimal128>()?);
            document.append(cstr!("ts"), date(row.try_get::<Raw<'_>>(3)?.0)?);
            // Behind a byte that is the version.
            let json: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(row.try_get::<Raw<'_>>(4)?.0.get(1..).unwrap_or_default())?;
            document.append(cstr!("j"), serialize_to_raw_document_buf(&json)?);
            document.append(cstr!("upd"), date(row.try_get::<Raw<'_>>(5)?.0)?);
            batch.push(document);
        }
        if batch.len() >= BATCH || is_end && !batch.is_empty() {
            count += batch.len() as u64;
            let documents = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            while inserts.len() >= AT_ONCE {
                inserts.join_next().await.transpose()?.transpose()?;
            }
            let target = target.clone();
            inserts.spawn(async move { target.insert_many(documents).ordered(false).await.map(drop) });
        }
        if is_end {
            break;
        }
    }
    while let Some(done) = inserts.join_next().await {
        done??;
    }
    Ok(count)
}

fn date(microseconds: &[u8]) -> Result<DateTime> {
    let since = i64::from_be_bytes(microseconds.try_into()?);
    Ok(DateTime::from_millis(since / 1_000 + EPOCH))
}
