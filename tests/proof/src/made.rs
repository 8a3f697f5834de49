//! Transforms for simulated histories, and what they make of the ledger's rows. The two are written apart.

use std::collections::BTreeMap;

use tidegate_core::port::{Join, Made, MadeColumn, Recipe, Record, Transform};
use tidegate_core::{Column, Result, Table, TableName, Type, Value};

use crate::world::Row;

/// How a history's rows are turned on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Rows whose number divides by four are left out, the text is computed.
    Filter,
    /// The second table is folded into the first.
    Fold,
}

impl Transform for Turn {
    fn make(&self, table: &Table) -> Result<Made> {
        if *self == Turn::Fold && table.name.name == "t1" {
            return Ok(Made::LeftOut);
        }
        let carried = |at: usize| MadeColumn { column: table.columns[at].clone(), carries: Some(at) };
        let text = MadeColumn { column: Column::new("large", Type::Text), carries: None };
        let joins = match self {
            Turn::Filter => Vec::new(),
            Turn::Fold => vec![Join { table: TableName::new("", "t1"), on: vec!["id".to_owned()] }],
        };
        let columns = vec![carried(0), carried(1), text];
        Ok(Made::Into(Recipe { columns, joins, filters: *self == Turn::Filter }))
    }

    fn row(
        &self,
        row: &Record<'_>,
        joined: &[Vec<Record<'_>>],
        out: &mut Vec<Value<'static>>,
    ) -> Result<bool> {
        if *self == Turn::Filter && matches!(row.value("small")?, Value::Int(small) if small % 4 == 0) {
            return Ok(false);
        }
        let mut text = format!("made {}", row.value("large")?);
        for other in joined.iter().flatten() {
            text.push_str(&format!(" with {} {}", other.value("small")?, other.value("large")?));
        }
        out.push(Value::Text(text.into()));
        Ok(true)
    }
}

/// What the target has to hold, by table.
pub(crate) fn expected(turn: Option<Turn>, ledger: &[BTreeMap<i64, Row>]) -> Vec<BTreeMap<i64, Row>> {
    let Some(turn) = turn else { return ledger.to_vec() };
    let number = |row: &Row| row.0.map_or_else(|| "null".to_owned(), |number| number.to_string());
    let text = |row: &Row| row.1.clone().unwrap_or_else(|| "null".to_owned());
    let made = |row: &Row| format!("made {}", text(row));
    match turn {
        Turn::Filter => ledger
            .iter()
            .map(|table| {
                let kept = table.iter().filter(|(_, row)| row.0.is_none_or(|number| number % 4 != 0));
                kept.map(|(id, row)| (*id, (row.0, Some(made(row)), None))).collect()
            })
            .collect(),
        Turn::Fold => {
            let fold = |(id, row): (&i64, &Row)| {
                let other = ledger[1].get(id).map(|other| format!(" with {} {}", number(other), text(other)));
                (*id, (row.0, Some(made(row) + &other.unwrap_or_default()), None))
            };
            vec![ledger[0].iter().map(fold).collect()]
        }
    }
}
