//! How the rows of one table are made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Crawler, MadeColumn, Recipe, Record, Transform};
use tidegate_core::{
    AsOf, Cell, Codec, Column, Encoding, Error, Key, Result, Row, Rows, Shape, Table, Value,
};

/// Keys of one fetch.
const FETCH_KEYS: usize = 1_000;

/// A table that travels, and what it is made from.
#[derive(Debug)]
pub(super) struct Making {
    transform: Arc<dyn Transform>,
    /// The source's own table.
    pub(super) source: Shape,
    /// The table as it travels.
    pub(super) made: Shape,
    /// Where each column comes from.
    carries: Vec<Option<usize>>,
    filters: bool,
    pub(super) joins: Vec<Joined>,
}

/// A table whose rows are folded in.
#[derive(Debug)]
pub(super) struct Joined {
    /// The table itself.
    pub(super) shape: Shape,
    /// The table with the columns that hold the other's key in place of its own.
    by: Shape,
    /// Where those columns stand in the table's own key.
    places: Vec<usize>,
}

impl Joined {
    fn new(shape: Shape, on: &[String], key: &[&Column]) -> Result<Self> {
        let table = &shape.table;
        let refuse = |why: String| Err(invalid(table, why));
        if on.len() != key.len() {
            return refuse(format!("{} columns stand for a key of {}", on.len(), key.len()));
        }
        let (mut columns, mut places) = (Vec::new(), Vec::new());
        for (name, key) in on.iter().zip(key) {
            let Some(at) = table.position(name) else { return refuse(format!("it has no column {name}")) };
            // Otherwise a deletion would not tell whose row it was.
            let Some(place) = table.key.iter().position(|key| *key == at) else {
                return refuse(format!("column {name} is not part of its key"));
            };
            let column = &table.columns[at];
            if (&column.kind, column.native_id) != (&key.kind, key.native_id) {
                return refuse(format!("column {name} is not of the type of {}", key.name));
            }
            columns.push(at);
            places.push(place);
        }
        let by = Table { key: columns, ..table.as_ref().clone() };
        Ok(Self { by: Shape { table: Arc::new(by), codec: Arc::clone(&shape.codec) }, shape, places })
    }

    /// The other's key, of a key of this table.
    pub(super) fn other_key(&self, key: Row<'_>) -> Key {
        let mut rows = Rows::new();
        rows.push_with(|out| self.places.iter().for_each(|at| out.cell(key.cell(*at))));
        Key(rows.row(0).frame().into())
    }

    /// The other's key, of a row of this table.
    pub(super) fn other_key_of_row(&self, row: Row<'_>) -> Key {
        self.by.cut_key(row)
    }
}

impl Making {
    /// For each column that travels, which one of the source it is; `None` if it is computed.
    pub(super) fn carries(&self) -> impl Iterator<Item = Option<usize>> {
        self.carries.iter().copied()
    }

    pub(super) fn new(
        transform: Arc<dyn Transform>,
        source: Shape,
        recipe: Option<Recipe>,
        joined: Vec<Shape>,
    ) -> Result<Self> {
        let Some(recipe) = recipe else {
            let carries = (0..source.table.columns.len()).map(Some).collect();
            let made = source.clone();
            return Ok(Self { transform, source, made, carries, filters: false, joins: Vec::new() });
        };
        let table = source.table.as_ref();
        let mut names = BTreeSet::new();
        for made in &recipe.columns {
            if !names.insert(&made.column.name) {
                return Err(invalid(table, format!("two columns are called {}", made.column.name)));
            }
            if made.carries.is_some_and(|at| at >= table.columns.len()) {
                return Err(invalid(
                    table,
                    format!("{} carries a column that is not there", made.column.name),
                ));
            }
        }
        let place = |key: &usize| {
            recipe.columns.iter().position(|made| made.carries == Some(*key)).ok_or_else(|| {
                invalid(table, format!("column {} of the key is not carried", table.columns[*key].name))
            })
        };
        let key = table.key.iter().map(place).collect::<Result<Vec<_>>>()?;
        let codec = MadeCodec::over(&source, &recipe);
        // Another table behind it makes it another one, too.
        let native_id =
            joined.iter().fold(table.native_id, |id, shape| id.wrapping_add(shape.table.native_id));
        let made = Table {
            columns: recipe.columns.iter().map(|made| made.column.clone()).collect(),
            key,
            native_id,
            ..table.clone()
        };
        let keys: Vec<&Column> = table.key_columns().collect();
        let joins = joined.into_iter().zip(&recipe.joins);
        let joins =
            joins.map(|(shape, join)| Joined::new(shape, &join.on, &keys)).collect::<Result<Vec<_>>>()?;
        let carries = recipe.columns.iter().map(|made| made.carries).collect();
        let made = Shape { table: Arc::new(made), codec };
        Ok(Self { transform, source, made, carries, filters: recipe.filters, joins })
    }

    /// Bytes that are read for a row, with all that is folded into it, as far as the source knows. 0 if it does not.
    pub(super) fn row_bytes_estimated(&self) -> usize {
        let table = &self.source.table;
        let folded: u64 = self.joins.iter().map(|joined| joined.shape.table.bytes_estimated).sum();
        let folded = folded.checked_div(table.rows_estimated).unwrap_or(0);
        table.row_bytes_estimated() + usize::try_from(folded).unwrap_or(usize::MAX / 2)
    }

    /// Whether rows of other tables are folded into its rows.
    pub(super) fn folds(&self) -> bool {
        !self.joins.is_empty()
    }

    /// Whether its rows are the source's, byte for byte.
    pub(super) fn is_plain(&self) -> bool {
        !self.needs_whole_rows()
            && self.carries.len() == self.source.table.columns.len()
            && self.carries.iter().enumerate().all(|(at, carries)| *carries == Some(at))
    }

    /// Whether a row can be made only if all its cells are there.
    pub(super) fn needs_whole_rows(&self) -> bool {
        self.filters || self.folds() || self.carries.contains(&None)
    }

    /// Makes a row; `false` if it is left out.
    pub(super) fn make(&self, row: Row<'_>, joined: &[Vec<Record<'_>>], out: &mut Rows) -> Result<bool> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        let mut values = Vec::new();
        if self.needs_whole_rows() {
            let record = Record::new(&self.source, row);
            let named = |error: Error| error.with("table", &self.source.table.name).with("key", record.key());
            if !self.transform.row(&record, joined, &mut values).map_err(named)? {
                return Ok(false);
            }
            self.check(&values).map_err(named)?;
        }
        let mut values = values.iter();
        out.push_with(|out| {
            for carries in &self.carries {
                match carries {
                    Some(at) => out.cell(cells.get(*at).copied().unwrap_or(Cell::Unchanged)),
                    None => out.value(values.next().unwrap_or(&Value::Null)),
                }
            }
        });
        Ok(true)
    }

    fn check(&self, values: &[Value<'_>]) -> Result<()> {
        let columns = self.made.table.columns.iter().zip(&self.carries);
        let computed: Vec<&Column> =
            columns.filter(|(_, carries)| carries.is_none()).map(|(column, _)| column).collect();
        if computed.len() != values.len() {
            let text = format!("{} values were computed for {} columns", values.len(), computed.len());
            return Err(Error::new(code::TRANSFORM_FAILED, text));
        }
        for (column, value) in computed.into_iter().zip(values) {
            if !(column.kind.holds(value) && (column.nullable || *value != Value::Null)) {
                let text = format!(
                    "the value computed for {} is {}, which it cannot hold",
                    column.name,
                    value.kind()
                );
                return Err(Error::new(code::TRANSFORM_FAILED, text).with("column", &column.name));
            }
        }
        Ok(())
    }

    /// Makes rows that were just read. The instant, if other tables were read for it, later than the rows'.
    pub(super) async fn make_all(
        &self,
        crawler: &mut dyn Crawler,
        rows: &Rows,
        out: &mut Rows,
    ) -> Result<Option<AsOf>> {
        let mut fetched = Vec::new();
        let mut latest = None;
        for joined in &self.joins {
            let keys: Vec<Key> = rows.iter().map(|row| self.source.cut_key(row)).collect();
            let mut of = Rows::new();
            for keys in keys.chunks(FETCH_KEYS) {
                latest = Some(crawler.fetch(&joined.by.table, keys, &mut of).await?);
            }
            let mut groups: HashMap<Vec<u8>, Vec<(Vec<u8>, usize)>> = HashMap::new();
            for (at, row) in of.iter().enumerate() {
                let (mut other, mut own) = (Vec::new(), Vec::new());
                joined.by.identity_of_row(row, &mut other)?;
                joined.shape.identity_of_row(row, &mut own)?;
                groups.entry(other).or_default().push((own, at));
            }
            groups.values_mut().for_each(|group| group.sort());
            fetched.push((of, groups));
        }
        let mut identity = Vec::new();
        for row in rows.iter() {
            identity.clear();
            self.source.identity_of_row(row, &mut identity)?;
            let joined: Vec<Vec<Record<'_>>> = self
                .joins
                .iter()
                .zip(&fetched)
                .map(|(joined, (of, groups))| {
                    let group = groups.get(&identity).map(Vec::as_slice).unwrap_or_default();
                    group.iter().map(|(_, at)| Record::new(&joined.shape, of.row(*at))).collect()
                })
                .collect();
            self.make(row, &joined, out)?;
        }
        Ok(latest)
    }

    /// Reads rows by their keys and makes them. The instant is the earliest of all that was read.
    pub(super) async fn fetch(
        &self,
        crawler: &mut dyn Crawler,
        keys: &[Key],
        out: &mut Rows,
    ) -> Result<AsOf> {
        let mut earliest = None;
        for keys in keys.chunks(FETCH_KEYS) {
            let mut rows = Rows::new();
            let as_of = crawler.fetch(&self.source.table, keys, &mut rows).await?;
            earliest.get_or_insert(as_of);
            self.make_all(crawler, &rows, out).await?;
        }
        match earliest {
            Some(as_of) => Ok(as_of),
            None => crawler.as_of().await,
        }
    }
}

/// The tables of the source that these are made from, each once.
pub(super) fn sources(makings: &[Arc<Making>]) -> Vec<Arc<Table>> {
    let mut sources: Vec<Arc<Table>> = Vec::new();
    for making in makings {
        let own = std::iter::once(&making.source).chain(making.joins.iter().map(|joined| &joined.shape));
        for shape in own {
            if sources.iter().all(|table| table.name != shape.table.name) {
                sources.push(Arc::clone(&shape.table));
            }
        }
    }
    sources
}

fn invalid(table: &Table, why: String) -> Error {
    Error::new(code::MAPPING_INVALID, format!("{} cannot be made like that: {why}", table.name))
        .with("table", &table.name)
}

/// Reads carried cells as the source's, computed ones as canonical.
#[derive(Debug)]
pub(crate) struct MadeCodec {
    source: Arc<dyn Codec>,
    /// Computed columns, and carried ones as a source that is made itself calls them, by their names here. The others are
    /// read as they are called.
    columns: BTreeMap<String, Option<Column>>,
}

const MADE: Encoding = Encoding("made");

impl MadeCodec {
    /// Over cells of which those of these columns are computed.
    pub(crate) fn new(source: Arc<dyn Codec>, computed: &BTreeSet<String>) -> Self {
        Self { source, columns: computed.iter().map(|name| (name.clone(), None)).collect() }
    }

    /// The codec of a made table.
    fn over(source: &Shape, recipe: &Recipe) -> Arc<dyn Codec> {
        if source.codec.encoding() == Encoding::CANONICAL {
            // Computed cells are no other than the source's: targets see that rows come from their own kind of store.
            return Arc::clone(&source.codec);
        }
        let column = |made: &MadeColumn| {
            let own =
                |at: usize| Column { name: source.table.columns[at].name.clone(), ..made.column.clone() };
            (made.column.name.clone(), made.carries.map(own))
        };
        let mut columns: BTreeMap<_, _> = recipe.columns.iter().map(column).collect();
        if source.codec.encoding() != MADE {
            // It does not look at names.
            columns.retain(|_, own| own.is_none());
        }
        if columns.is_empty() {
            return Arc::clone(&source.codec);
        }
        Arc::new(Self { source: Arc::clone(&source.codec), columns })
    }

    /// The column as the source calls it; `None` if it is computed.
    fn carried<'c>(&'c self, column: &'c Column) -> Option<&'c Column> {
        self.columns.get(&column.name).map_or(Some(column), Option::as_ref)
    }
}

impl Codec for MadeCodec {
    fn encoding(&self) -> Encoding {
        MADE
    }

    fn encoding_of(&self, column: &Column) -> Encoding {
        self.carried(column).map_or(Encoding::CANONICAL, |column| self.source.encoding_of(column))
    }

    fn has_values(&self, column: &Column) -> bool {
        self.carried(column).is_none_or(|column| self.source.has_values(column))
    }

    fn value<'a>(&self, column: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
        match self.carried(column) {
            None => Value::decode(cell),
            Some(column) => self.source.value(column, cell),
        }
    }

    fn key(&self, column: &Column, cell: &[u8], out: &mut Vec<u8>) -> Result<()> {
        match self.carried(column) {
            None => self.value(column, cell).map(|value| value.encode(out)),
            Some(column) => self.source.key(column, cell, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::{TableName, Type};

    use super::*;

    /// Text in capitals.
    #[derive(Debug)]
    struct Capitals;

    impl Codec for Capitals {
        fn encoding(&self) -> Encoding {
            Encoding("capitals")
        }

        fn value<'a>(&self, _: &Column, cell: &'a [u8]) -> Result<Value<'a>> {
            Ok(Value::Text(String::from_utf8_lossy(cell).to_lowercase().into()))
        }
    }

    /// Found by reading: a mapping over a program's own transform took a computed column for one of the source as soon
    /// as it had another name, and one of the source for the computed one that was called like it.
    #[test]
    fn a_made_column_is_read_alike_whatever_the_next_one_calls_it() {
        let text = |name: &str| Column::new(name, Type::Text);
        let table = Table {
            name: TableName::new("", "t"),
            native_id: 0,
            columns: vec![text("id"), text("v")],
            key: vec![0],
            rows_estimated: 0,
            bytes_estimated: 0,
        };
        let made = |source: &Shape, columns: &[(&str, Option<usize>)]| {
            let column = |(name, carries): &(&str, _)| MadeColumn { column: text(name), carries: *carries };
            let columns: Vec<_> = columns.iter().map(column).collect();
            let codec = MadeCodec::over(source, &Recipe { columns: columns.clone(), ..Recipe::default() });
            let columns = columns.into_iter().map(|made| made.column).collect();
            Shape { table: Arc::new(Table { columns, ..table.clone() }), codec }
        };
        let source = Shape { table: Arc::new(table.clone()), codec: Arc::new(Capitals) };
        let renamed = made(&source, &[("id", Some(0)), ("w", Some(1))]);
        assert_eq!(renamed.codec.encoding(), Encoding("capitals"));
        let first = made(&renamed, &[("id", Some(0)), ("w", Some(1)), ("sum", None)]);
        let second = made(&first, &[("key", Some(0)), ("sum", Some(1)), ("w", Some(2)), ("more", None)]);
        let mut canonical = Vec::new();
        Value::Text("Sum".into()).encode(&mut canonical);
        for (at, cell, value) in
            [(0, &b"ID"[..], "id"), (1, b"V", "v"), (2, &canonical, "Sum"), (3, &canonical, "Sum")]
        {
            assert_eq!(second.value(at, Cell::Bytes(cell)).unwrap(), Some(Value::Text(value.into())));
            let is_computed = value == "Sum";
            let encoding = if is_computed { Encoding::CANONICAL } else { Encoding("capitals") };
            assert_eq!(second.codec.encoding_of(&second.table.columns[at]), encoding);
        }
    }
}
