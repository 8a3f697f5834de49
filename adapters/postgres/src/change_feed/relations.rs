//! From the tables as the stream describes them to the tables as the flow knows them.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::{Cell, Error, Result, RowWriter, Table};

use crate::form::OID_OWN;
use crate::pgoutput::{Cell as Sent, Identity, Old, Relation, Tuple};

/// A table of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    /// Its place in the flow.
    pub(crate) table: usize,
    /// For each column of the flow, where its cell stands in a row of the stream; `None` if the row is from before
    /// the column, and had null there.
    places: Vec<Option<usize>>,
    /// Whether those are 0, 1, 2 …
    straight: bool,
    /// For each column of the key, where it stands.
    key: Vec<usize>,
    /// A column that the rows do not have yet, or have no more.
    pub(crate) lacks: Option<usize>,
}

/// The tables of the stream by number; `None` for one that the flow does not have.
pub(crate) type Relations = HashMap<u32, Option<Arc<Mapped>>>;

impl Mapped {
    /// Finds the columns of a table of the flow.
    pub(crate) fn new(tables: &[Arc<Table>], relation: &Relation<'_>) -> Result<Option<Self>> {
        // By its number: what a table is called may change in between, and it is the same one.
        let is_it = |table: &Arc<Table>| {
            let schema = if table.name.schema.is_empty() { "public" } else { &table.name.schema };
            let is_named = schema == relation.schema && table.name.name == relation.name;
            if table.native_id == 0 { is_named } else { table.native_id == relation.oid }
        };
        let Some(table) = tables.iter().position(is_it) else { return Ok(None) };
        let described = &tables[table];
        let columns: Vec<_> = relation.columns.iter().collect();
        let changed = |what: &'static str, column: &str| {
            Error::new(code::SCHEMA_CHANGED, what)
                .with("table", &described.name)
                .with("column", column)
                .hint("tidegate migrate recopy")
        };
        let mut places = Vec::with_capacity(described.columns.len());
        for column in &described.columns {
            let place = columns.iter().position(|sent| sent.name == column.name);
            match place.map(|place| columns[place].type_oid) {
                Some(oid) if oid < OID_OWN && column.native_id < OID_OWN && oid != column.native_id => {
                    return Err(changed("a column has another type", &column.name));
                }
                // Columns are added behind the others.
                Some(_) if places.last().is_some_and(Option::is_none) => {
                    return Err(changed("a column is gone", &described.columns[places.len() - 1].name));
                }
                // Columns keep their order: two have exchanged their names.
                Some(_) if places.last().is_some_and(|last| *last > place) => {
                    return Err(changed(
                        "a column is another one under the same name: columns have exchanged names",
                        &column.name,
                    ));
                }
                None if !column.is_null_before() => return Err(changed("a column is gone", &column.name)),
                Some(_) | None => places.push(place),
            }
        }
        if let Some(new) = columns.iter().find(|sent| described.position(sent.name).is_none()) {
            return Err(changed("a column is new", new.name));
        }
        let key: Option<Vec<usize>> = described.key.iter().map(|at| places[*at]).collect();
        let key = key.ok_or_else(|| changed("the table's key is another", ""))?;
        if relation.identity == Identity::Nothing
            || relation.identity != Identity::Full && key.iter().any(|place| !columns[*place].key)
        {
            return Err(changed("the table's key is another", ""));
        }
        let straight = places.iter().enumerate().all(|(at, place)| Some(at) == *place);
        let lacks = places.iter().position(Option::is_none);
        Ok(Some(Self { table, places, straight, key, lacks }))
    }

    /// Writes a new row; what it leaves out is taken from the old one if that has it.
    pub(crate) fn write_row(&self, new: Tuple<'_>, old: Option<Old<'_>>, out: &mut RowWriter<'_>) {
        if self.straight {
            for (place, cell) in new.cells().enumerate() {
                out.cell(self.filled(cell, place, old));
            }
            return;
        }
        for place in &self.places {
            let Some(place) = place else {
                out.cell(Cell::Null);
                continue;
            };
            let cell = new.cells().nth(*place).unwrap_or(Sent::Unchanged);
            out.cell(self.filled(cell, *place, old));
        }
    }

    fn filled<'a>(&self, cell: Sent<'a>, place: usize, old: Option<Old<'a>>) -> Cell<'a> {
        let cell = match (cell, old) {
            (Sent::Unchanged, Some(Old::Full(old))) => old.cells().nth(place).unwrap_or(cell),
            (Sent::Unchanged, Some(Old::Key(old))) if self.key.contains(&place) => {
                old.cells().nth(place).unwrap_or(cell)
            }
            _ => cell,
        };
        bytes(cell)
    }

    /// Writes the key of a row.
    pub(crate) fn write_key(&self, row: Tuple<'_>, out: &mut RowWriter<'_>) {
        for place in &self.key {
            out.cell(row.cells().nth(*place).map_or(Cell::Null, bytes));
        }
    }

    /// Whether the key of an updated row is another one than before.
    pub(crate) fn is_moved(&self, old: Tuple<'_>, new: Tuple<'_>) -> bool {
        self.key.iter().any(|place| {
            let cell = new.cells().nth(*place);
            cell != Some(Sent::Unchanged) && cell != old.cells().nth(*place)
        })
    }
}

fn bytes(cell: Sent<'_>) -> Cell<'_> {
    match cell {
        Sent::Null => Cell::Null,
        Sent::Unchanged => Cell::Unchanged,
        // In text only for types without a binary form, which the catalog refuses.
        Sent::Text(bytes) | Sent::Binary(bytes) => Cell::Bytes(bytes),
    }
}
