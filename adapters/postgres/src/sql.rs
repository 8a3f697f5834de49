//! Names and values inside of statements.

use tidegate_core::{Key, Result, Table, TableName};

use crate::codec::text_of;

/// A name as an identifier.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal, whatever the server's settings are.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A table by its full name.
pub(crate) fn table(name: &TableName) -> String {
    let schema = if name.schema.is_empty() { "public" } else { &name.schema };
    format!("{}.{}", ident(schema), ident(&name.name))
}

/// Names with commas between.
pub(crate) fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| ident(name.as_ref())).collect();
    quoted.join(", ")
}

/// The columns of a table's key.
pub(crate) fn key_list(table: &Table) -> String {
    list(table.key_columns().map(|column| &column.name))
}

/// A key as a list of typed literals, one a column.
pub(crate) fn key_literals(table: &Table, key: &Key) -> Result<String> {
    let mut literals = Vec::new();
    for (column, cell) in table.key_columns().zip(key.row().cells()) {
        let tidegate_core::Cell::Bytes(cell) = cell else {
            literals.push("NULL".to_owned());
            continue;
        };
        literals.push(format!("{}::{}", literal(&text_of(column, cell)?), column.native));
    }
    Ok(literals.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_its_quotes() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(table(&TableName::new("", "T")), "\"public\".\"T\"");
    }
}
