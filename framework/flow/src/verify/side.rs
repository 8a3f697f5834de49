//! One side of a table, as it is compared: what stands in its rows, in the target's own terms.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Catalog, Crawler, KeyRange, Limit, Route};
use tidegate_core::{Cell, Column, Encoding, Error, Result, Row, Rows, Shape, Table, Type, Value};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Reading, Verification};

/// Buckets of a table.
pub(super) const BUCKETS: usize = 1 << 16;
/// Rows that one read takes.
const READ: Limit = Limit { rows: 20_000, bytes: 8 << 20 };

/// One side of one table.
pub(super) struct Side {
    pub(super) crawler: Box<dyn Crawler>,
    shape: Shape,
    /// On the source's side, the target's columns as they are there: its values are compared with what those would give
    /// back for them.
    held_as: Option<Vec<Column>>,
    /// The place of each of the route's columns in this side's rows.
    places: Vec<usize>,
    /// The columns whose bytes are compared: both sides are of one kind and hold the same type, of which the model may
    /// not even know the values.
    by_bytes: Vec<bool>,
    /// All of them, in the same order on both sides: then a row's frame is compared as it is.
    by_frame: bool,
    reading: Arc<Reading>,
}

/// A row by the identity of its key.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// How many rows this side has of that key: rows that differ in the source may be written alike in the target.
    pub(super) rows: u64,
    pub(super) hash: u128,
    pub(super) cells: Vec<u64>,
    /// What it has that is no column, by name.
    pub(super) surplus: Vec<String>,
    pub(super) key: BTreeMap<String, String>,
}

type Digests = Vec<(u64, u128)>;

/// Both sides of a table.
pub(super) async fn sides(
    verification: &Verification<'_>,
    target: &dyn Catalog,
    route: &Route,
) -> Result<(Side, Side)> {
    let columns = route.target.columns.len();
    let mut source = Side {
        crawler: verification.source.crawler().await?,
        shape: route.shape.clone(),
        held_as: None,
        places: (0..columns).collect(),
        by_bytes: Vec::new(),
        by_frame: false,
        reading: Arc::clone(&verification.reading),
    };
    let mut held = target_side(verification, target, &route.target).await?;
    let encoding = route.shape.codec.encoding();
    let same = held.shape.codec.encoding() == encoding && encoding != Encoding::CANONICAL;
    let pairs = route.shape.table.columns.iter().zip(&held.places);
    let by_bytes = pairs.map(|(column, place)| {
        let other = &held.shape.table.columns[*place];
        let equal = (&column.native, column.native_id) == (&other.native, other.native_id);
        same && (equal || is_native(&column.kind))
    });
    source.by_bytes = by_bytes.collect();
    let held_as = held.places.iter().map(|place| held.shape.table.columns[*place].clone());
    source.held_as = Some(held_as.collect());
    held.by_bytes.clone_from(&source.by_bytes);
    source.by_frame = source.by_bytes.iter().all(|by_bytes| *by_bytes)
        && held.places == source.places
        && held.shape.table.columns.len() == columns;
    held.by_frame = source.by_frame;
    Ok((source, held))
}

async fn target_side(
    verification: &Verification<'_>,
    catalog: &dyn Catalog,
    wanted: &Arc<Table>,
) -> Result<Side> {
    let table = catalog.held(wanted).await?;
    let place = |name: &str| {
        table.position(name).ok_or_else(|| {
            Error::new(
                code::TARGET_DIFFERS,
                format!("the target's table {} has no column {name}", wanted.name),
            )
        })
    };
    let places = wanted.columns.iter().map(|column| place(&column.name)).collect::<Result<Vec<_>>>()?;
    let codec = catalog.codec(&table);
    let shape = Shape { table: Arc::new(table), codec };
    Ok(Side {
        crawler: verification.target.crawler().await?,
        shape,
        held_as: None,
        places,
        by_bytes: Vec::new(),
        by_frame: false,
        reading: Arc::clone(&verification.reading),
    })
}

fn is_native(kind: &Type) -> bool {
    match kind {
        Type::Native(_) => true,
        Type::Array(items) => is_native(items),
        _ => false,
    }
}

/// The bucket of a key.
pub(super) fn bucket(key: &[u8]) -> usize {
    usize::try_from(xxh3_64(key) % BUCKETS as u64).unwrap_or(0)
}

/// A cell whose bytes are compared is written behind one of these.
const NULL: u8 = 0;
const BYTES: u8 = 1;
/// A cell of the target that has no value, so that no cell of the source is equal to it. No value begins like this.
const STRANGE: u8 = u8::MAX;

impl Side {
    /// Reads the whole table and gives each row, and what it has that is no column.
    async fn each(
        &mut self,
        mut take: impl FnMut(&Self, Row<'_>, &[(usize, String)]) -> Result<()>,
    ) -> Result<u64> {
        let table = Arc::clone(&self.shape.table);
        let mut rows = Rows::new();
        let mut count = 0;
        let mut row_bytes = table.row_bytes_estimated();
        for range in self.crawler.split(&table, 1).await? {
            let mut rest = KeyRange { after: range.after, upto: None };
            loop {
                rows.clear();
                let chunk = self.crawler.read(&table, &rest, READ.of_rows(row_bytes), &mut rows).await?;
                count += rows.len() as u64;
                self.reading.read(rows.len());
                row_bytes = rows.bytes().len().checked_div(rows.len()).unwrap_or(row_bytes);
                let mut surplus = &chunk.surplus[..];
                if let Some((_, field)) = surplus.first().filter(|_| self.held_as.is_some()) {
                    return Err(table.surplus(field));
                }
                for (at, row) in rows.iter().enumerate() {
                    let (own, rest) = surplus.split_at(surplus.partition_point(|(row, _)| *row <= at));
                    take(self, row, own)?;
                    surplus = rest;
                }
                match chunk.next {
                    Some(next) => rest.after = Some(next),
                    None => break,
                }
            }
        }
        Ok(count)
    }

    /// Writes what is compared of a column, in the target's own terms, behind its length.
    fn put(
        &self,
        route: &Route,
        target: &dyn Catalog,
        column: usize,
        cell: Cell<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        out.extend([0; 4]);
        if self.by_bytes[column] {
            match cell {
                Cell::Bytes(bytes) => {
                    out.push(BYTES);
                    out.extend_from_slice(bytes);
                }
                Cell::Null | Cell::Unchanged => out.push(NULL),
            }
        } else {
            match (self.shape.value(self.places[column], cell), cell, &self.held_as) {
                (Err(error), Cell::Bytes(bytes), None) if error.code() == code::VALUE_UNFIT => {
                    out.push(STRANGE);
                    out.extend_from_slice(bytes);
                }
                (value, _, held_as) => {
                    let mut value = value?.unwrap_or(Value::Null);
                    if let Some(held_as) = held_as {
                        let (wanted, there) = (&route.target.columns[column], &held_as[column]);
                        value = target.stored(wanted, value)?;
                        // It may have come into a column of a wider type.
                        if there.kind != wanted.kind {
                            value = target.stored(there, value)?;
                        }
                    }
                    value.encode(out);
                }
            }
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// The identity of a row's key.
    fn identity(&self, route: &Route, target: &dyn Catalog, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        let key = route.target.key.iter();
        key.copied().try_for_each(|at| self.put(route, target, at, row.cell(self.places[at]), out))
    }

    /// What is compared of a row, column behind column, and where each ends; behind them what is no column.
    fn compared(
        &self,
        route: &Route,
        target: &dyn Catalog,
        (row, surplus): (Row<'_>, &[(usize, String)]),
        out: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<()> {
        out.clear();
        ends.clear();
        let cells: Vec<_> = row.cells().collect();
        for (at, place) in self.places.iter().enumerate() {
            self.put(route, target, at, cells[*place], out)?;
            ends.push(out.len());
        }
        surplus.iter().for_each(|(_, field)| out.extend_from_slice(field.as_bytes()));
        Ok(())
    }

    /// How many rows each bucket has, and the sum of their hashes.
    pub(super) async fn digest(&mut self, route: &Route, target: &dyn Catalog) -> Result<(Digests, u64)> {
        let mut digests: Digests = vec![(0, 0); BUCKETS];
        let (mut key, mut cells, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let rows = self.each(|side, row, surplus| {
            side.identity(route, target, row, &mut key)?;
            let hash = if side.by_frame && surplus.is_empty() {
                xxh3_128(row.frame())
            } else {
                side.compared(route, target, (row, surplus), &mut cells, &mut ends)?;
                xxh3_128(&cells)
            };
            let (count, sum) = &mut digests[bucket(&key)];
            *count += 1;
            *sum = sum.wrapping_add(hash);
            Ok(())
        });
        let rows = rows.await?;
        Ok((digests, rows))
    }

    /// The rows of some buckets, by the identity of their key.
    pub(super) async fn collect(
        &mut self,
        route: &Route,
        target: &dyn Catalog,
        suspects: &BTreeSet<usize>,
    ) -> Result<HashMap<Vec<u8>, Seen>> {
        let mut seen = HashMap::new();
        let (mut identity, mut cells, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        self.each(|side, row, surplus| {
            side.identity(route, target, row, &mut identity)?;
            if !suspects.contains(&bucket(&identity)) {
                return Ok(());
            }
            side.compared(route, target, (row, surplus), &mut cells, &mut ends)?;
            let key = route.target.key.iter().map(|at| {
                let place = side.places[*at];
                let value = side.shape.value(place, row.cell(place)).ok().flatten().unwrap_or(Value::Null);
                (route.target.columns[*at].name.clone(), value.to_string())
            });
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let hashes = starts.zip(&ends).map(|(start, end)| xxh3_64(&cells[start..*end])).collect();
            let hash = xxh3_128(&cells);
            match seen.entry(identity.clone()) {
                Entry::Vacant(place) => {
                    let surplus = surplus.iter().map(|(_, field)| field.clone()).collect();
                    place.insert(Seen { rows: 1, hash, cells: hashes, surplus, key: key.collect() });
                }
                Entry::Occupied(mut alike) => {
                    let alike: &mut Seen = alike.get_mut();
                    alike.rows += 1;
                    alike.hash = alike.hash.wrapping_add(hash);
                }
            }
            Ok(())
        })
        .await?;
        Ok(seen)
    }
}
