//! Rows turned by the configuration: columns renamed, dropped and computed, rows filtered.
//!
//! Expressions are CEL, the Common Expression Language: they always end, and have no effect. They see the source's
//! row as `row`, whose fields are its columns, and where the source holds documents, the document as `document`.

mod document;
mod kind;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cel::{Context, Env, ExecutionError, Program};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_core::error::code;
use tidegate_core::port::{Made, MadeColumn, Recipe, Record, Transform};
use tidegate_core::{Column, Error, Result, Table, TableName, Type, Value};

use names::Names;

pub(crate) use document::{Field, fields};
pub(crate) use kind::{FLOAT_INTEGERS_MAX, Kind};

/// The row, as expressions call it.
const ROW: &str = "row";
/// The document, as expressions call it.
const DOCUMENT: &str = "document";

/// What is done to the rows of one table.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Map {
    /// The table of the source, with or without its schema.
    pub(crate) table: String,
    /// Its name in the target.
    #[serde(default)]
    pub(crate) to: Option<String>,
    /// Only rows for which this is true are moved: a CEL expression over `row`, or `document`.
    #[serde(default)]
    pub(crate) filter: Option<String>,
    /// Columns that are not moved.
    #[serde(default)]
    pub(crate) drop: BTreeSet<String>,
    /// Columns by their name in the source, and their name in the target.
    #[serde(default)]
    pub(crate) rename: BTreeMap<String, String>,
    /// Columns that are computed, by their name in the target. One that the table has is replaced.
    #[serde(default)]
    pub(crate) compute: BTreeMap<String, Compute>,
}

/// A computed column.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Compute {
    /// The type of its values.
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    /// A CEL expression over `row`, or `document`.
    pub(crate) value: String,
}

/// The mapping of a migration, its expressions compiled.
pub(crate) struct Mapping {
    environment: Arc<Env>,
    tables: Vec<TableMap>,
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.tables.iter().map(|table| &table.map.table)).finish()
    }
}

struct TableMap {
    map: Map,
    filter: Option<Program>,
    compute: BTreeMap<String, (Kind, Program)>,
    /// What all of them together look at.
    names: Names,
}

impl Mapping {
    /// Compiles a mapping; `None` if it says nothing.
    pub(crate) fn compile(maps: &[Map]) -> Result<Option<Self>> {
        let environment = Arc::new(Env::stdlib());
        // A name that the language has cannot be given to another function.
        let mut none = Context::with_env(Arc::clone(&environment));
        let mut is_unknown = |name: &&String| none.add_function(name, |value: i64| value).is_ok();
        let mut tables: Vec<TableMap> = Vec::new();
        for map in maps {
            if tables.iter().any(|known| known.map.table == map.table) {
                return Err(invalid(&map.table, "it stands twice in the mapping"));
            }
            let mut names = Names::default();
            let mut compile = |place: &str, text: &str| {
                let program = Program::compile(text).map_err(|e| {
                    invalid(&map.table, format!("{place} = {text:?} is no expression")).because(e)
                })?;
                let used = Names::of(program.expression());
                if let Some(other) =
                    used.variables.iter().find(|name| ![ROW, DOCUMENT].contains(&name.as_str()))
                {
                    let why = format!("{place} = {text:?} uses {other}, which is not there");
                    return Err(invalid(&map.table, why).hint("columns are written row.NAME"));
                }
                if let Some(other) = used.functions.iter().find(&mut is_unknown) {
                    let why = format!("{place} = {text:?} calls {other}, which CEL does not have");
                    return Err(
                        invalid(&map.table, why).hint("the functions stand in the book, under The mapping")
                    );
                }
                names.variables.extend(used.variables);
                names.columns.extend(used.columns);
                Ok(program)
            };
            let filter = map.filter.as_deref().map(|text| compile("filter", text)).transpose()?;
            let mut compute = BTreeMap::new();
            for (name, column) in &map.compute {
                compute.insert(name.clone(), (column.kind, compile(name, &column.value)?));
            }
            tables.push(TableMap { map: map.clone(), filter, compute, names });
        }
        Ok((!tables.is_empty()).then(|| Self { environment, tables }))
    }

    /// Tables that the mapping names and that are not among these.
    pub(crate) fn unknown(&self, tables: &[&TableName]) -> Vec<Error> {
        // One with a name for the target is found with the other names.
        let is_unknown =
            |map: &&TableMap| map.map.to.is_none() && !tables.iter().any(|table| map.is_of(table));
        let unknown = self.tables.iter().filter(is_unknown);
        unknown.map(|map| invalid(&map.map.table, "it is not among the tables that are moved")).collect()
    }

    /// What makes other values of the same rows, in words that are the same as long as that is: another filter, or another
    /// computed column, would make a mixture. Other columns are found by their names.
    pub(crate) fn words(&self, table: &TableName) -> Option<String> {
        let map = self.of(table).map(|table| &table.map)?;
        let says_so = map.filter.is_some() || !map.compute.is_empty();
        says_so.then(|| serde_json::json!({"filter": map.filter, "compute": map.compute}).to_string())
    }

    /// What it says of a table, for people to read.
    pub(crate) fn lines(&self, table: &TableName) -> Vec<String> {
        let Some(map) = self.of(table).map(|table| &table.map) else { return Vec::new() };
        let filter = map.filter.iter().map(|filter| format!("only rows with {filter}"));
        let dropped = map.drop.iter().map(|name| format!("without {name}"));
        let renamed = map.rename.iter().map(|(from, to)| format!("{to} is {from} in the source"));
        let computed = map.compute.iter().map(|(name, by)| format!("{name} is computed: {}", by.value));
        filter.chain(dropped).chain(renamed).chain(computed).collect()
    }

    fn of(&self, table: &TableName) -> Option<&TableMap> {
        self.tables.iter().find(|map| map.is_of(table))
    }

    /// What the expressions of a table see of a row.
    fn context(&self, map: &TableMap, row: &Record<'_>) -> Result<Context<'static, 'static>> {
        let mut context = Context::with_env(Arc::clone(&self.environment));
        let uses = |name| map.names.variables.contains(name);
        if uses(ROW) {
            let mut fields = HashMap::with_capacity(row.columns().len());
            for (at, column) in row.columns().iter().enumerate() {
                fields.insert(column.name.clone(), field(column, row.value_at(at)?)?);
            }
            context.add_variable_from_value(ROW, fields);
        }
        if uses(DOCUMENT)
            && let Some(at) = row.columns().iter().position(is_document)
        {
            context.add_variable_from_value(DOCUMENT, field(&row.columns()[at], row.value_at(at)?)?);
        }
        Ok(context)
    }
}

fn evaluate(program: &Program, text: &str, context: &Context<'_, '_>) -> Result<cel::Value> {
    program
        .execute(context)
        .map_err(|e| Error::new(code::TRANSFORM_FAILED, failure(&e)).with("expression", text))
}

/// Whether a column holds whole documents.
pub(crate) fn is_document(column: &Column) -> bool {
    column.kind == Type::Document
}

/// What went wrong, without the values it went wrong with.
fn failure(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => format!("there is no field {name}"),
        ExecutionError::UndeclaredReference(name) => format!("there is no {name}"),
        ExecutionError::UnexpectedType { got, want } => format!("there is {got} where {want} belongs"),
        // It names types.
        ExecutionError::NoSuchOverload(error) => error.to_string(),
        ExecutionError::FunctionError { function, .. } => {
            format!("{function} has no answer for such a value")
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "a division by zero".to_owned()
        }
        ExecutionError::UnsupportedBinaryOperator(operator, one, other) => {
            format!("there is no {operator} of {} and {}", one.type_of(), other.type_of())
        }
        ExecutionError::ValuesNotComparable(one, other) => {
            format!("{} and {} cannot be compared", one.type_of(), other.type_of())
        }
        ExecutionError::NotSupportedAsMethod { method, target } => {
            format!("{} has no {method}", target.type_of())
        }
        _ => "an expression has no answer".to_owned(),
    }
}

impl TableMap {
    fn is_of(&self, table: &TableName) -> bool {
        table.is_called(&self.map.table)
    }

    fn recipe(&self, table: &Table) -> Result<Recipe> {
        let known = |name: &String, what: &str| match table.position(name) {
            Some(at) => Ok(at),
            None => {
                Err(invalid(&self.map.table, format!("{what} names {name}, which the table does not have")))
            }
        };
        let mut gone = BTreeSet::new();
        for name in &self.map.drop {
            gone.insert(known(name, "drop")?);
        }
        for name in self.map.rename.keys() {
            known(name, "rename")?;
        }
        for name in &self.names.columns {
            known(name, "an expression")?;
        }
        if self.names.variables.contains(DOCUMENT) && !table.columns.iter().any(is_document) {
            let why = "an expression uses document, which a table with columns does not have";
            return Err(invalid(&self.map.table, why).hint("columns are written row.NAME"));
        }
        if let Some(key) = table.key.iter().find(|at| gone.contains(at)) {
            let why = format!("column {} is part of the key and cannot be dropped", table.columns[*key].name);
            return Err(invalid(&self.map.table, why));
        }
        let mut recipe = Recipe { filters: self.filter.is_some(), ..Recipe::default() };
        let computed = |name: &str| {
            let column = |(kind, _): &(Kind, Program)| MadeColumn {
                column: Column::new(name, kind.of_column()),
                carries: None,
            };
            self.compute.get(name).map(column)
        };
        for (at, column) in table.columns.iter().enumerate().filter(|(at, _)| !gone.contains(at)) {
            let name = self.map.rename.get(&column.name).unwrap_or(&column.name);
            recipe.columns.push(computed(name).unwrap_or_else(|| MadeColumn {
                column: Column { name: name.clone(), ..column.clone() },
                carries: Some(at),
            }));
        }
        let there: BTreeSet<String> = recipe.columns.iter().map(|made| made.column.name.clone()).collect();
        let new = self.compute.keys().filter(|name| !there.contains(*name));
        recipe.columns.extend(new.filter_map(|name| computed(name)));
        Ok(recipe)
    }
}

impl Transform for Mapping {
    fn make(&self, table: &Table) -> Result<Made> {
        match self.of(&table.name) {
            Some(map) => Ok(Made::Into(map.recipe(table)?)),
            None => Ok(Made::AsIs),
        }
    }

    fn row(&self, row: &Record<'_>, _: &[Vec<Record<'_>>], out: &mut Vec<Value<'static>>) -> Result<bool> {
        let Some(map) = self.of(row.table()) else { return Ok(true) };
        let context = self.context(map, row)?;
        if let Some(filter) = &map.filter {
            let text = map.map.filter.as_deref().unwrap_or_default();
            match evaluate(filter, text, &context)? {
                cel::Value::Bool(true) => {}
                cel::Value::Bool(false) => return Ok(false),
                other => {
                    let what = format!("the filter answers {} and not true or false", other.type_of());
                    return Err(Error::new(code::TRANSFORM_FAILED, what).with("expression", text));
                }
            }
        }
        // In the order of the columns as they travel, which the recipe gave: those that replace come in their place.
        let replaced = row.columns().iter().filter(|column| !map.map.drop.contains(&column.name));
        let replaced = replaced.map(|column| map.map.rename.get(&column.name).unwrap_or(&column.name));
        let replaced: Vec<&String> = replaced.filter(|name| map.compute.contains_key(*name)).collect();
        let new = map.compute.keys().filter(|name| !replaced.contains(name));
        for name in replaced.iter().copied().chain(new) {
            let (kind, program) = &map.compute[name];
            let text = &map.map.compute[name].value;
            let answer = evaluate(program, text, &context).map_err(|e| e.with("column", name))?;
            out.push(kind.take(answer).map_err(|found| {
                Error::new(code::TRANSFORM_FAILED, format!("the expression of {name} answers {found}"))
                    .with("expression", text)
                    .with("column", name)
            })?);
        }
        Ok(true)
    }
}

/// A value as expressions see it. What CEL has no type for is text.
fn field(column: &Column, value: Value<'_>) -> Result<cel::Value> {
    Ok(match value {
        Value::Null => cel::Value::Null,
        Value::Bool(v) => v.into(),
        Value::Int(v) => v.into(),
        Value::Float32(v) => f64::from(v).into(),
        Value::Float(v) => v.into(),
        Value::Bytes(v) => cel::Value::Bytes(Arc::new(v.into_owned())),
        // Where each value has a type of its own, JSON is what is left of a document's.
        Value::Json(v) if is_document(column) || column.kind == Type::Any => {
            document::seen(&v, is_document(column))?
        }
        Value::Json(v) => {
            let json: serde_json::Value = serde_json::from_str(&v)
                .map_err(|e| Error::new(code::TRANSFORM_FAILED, "a JSON value cannot be read").because(e))?;
            cel::to_value(json)
                .map_err(|e| Error::new(code::TRANSFORM_FAILED, "a JSON value cannot be read").because(e))?
        }
        Value::Array(list) => {
            let items = list.into_iter().map(|item| field(column, item));
            cel::Value::List(Arc::new(items.collect::<Result<Vec<_>>>()?))
        }
        Value::Text(v) | Value::Decimal(v) => v.into_owned().into(),
        other => other.to_string().into(),
    })
}

/// `public.orders` or `orders`.
pub(crate) fn table_name(text: &str) -> Result<TableName> {
    let name = match text.split_once('.') {
        Some(("", _)) => None,
        Some((schema, name)) => Some(TableName::new(schema, name)),
        None => Some(TableName::new("", text)),
    };
    name.filter(|name| !name.name.is_empty()).ok_or_else(|| {
        Error::new(code::CONFIG_INVALID, format!("{text:?} is no name of a table"))
            .hint("write public.orders or orders")
    })
}

fn invalid(table: &str, why: impl Into<String>) -> Error {
    Error::new(code::MAPPING_INVALID, format!("the mapping of {table} cannot be followed: {}", why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_that_the_book_names_are_there() {
        let page = include_str!("../../docs/operating/mapping.md");
        let named = page.split("Functions:").nth(1).and_then(|rest| rest.split("macros").next()).unwrap();
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            let map = Map { table: "t".into(), filter: Some(format!("{name}(row.v)")), ..Map::default() };
            assert!(Mapping::compile(&[map]).is_ok(), "{name}");
        }
        let map = Map { table: "t".into(), filter: Some("substring(row.v)".into()), ..Map::default() };
        assert!(Mapping::compile(&[map]).is_err());
    }
}
