//! The triggers that write the journal.
//!
//! A row that `REPLACE` removes because of another unique index, or of its rowid, fires no trigger. So before each write the
//! rows that hold its values there (its rivals) are journaled too. Too many entries do no harm: a key without a change is
//! looked up and delivered as it is.
//!
//! They run in the application's library, of whatever version: they use nothing newer than SQLite 3.7.

use sqlx::SqliteConnection;
use tidegate_core::{Result, Table};

use crate::describe::{Described, Index};
use crate::error::During;
use crate::statement::{join, literal, name, sql};

/// Microseconds since 1970, in words that every SQLite knows.
const NOW: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000";

/// A trigger: its name and its text.
pub(super) type Trigger = (String, String);

/// The triggers of a table.
pub(super) fn all(described: &Described) -> Vec<Trigger> {
    let table = &described.table;
    let mut all = events(table);
    for index in described.unique.iter().filter(|index| described.unseen(index).is_none()) {
        let new = |column: &str| match described.defaults.get(column) {
            // REPLACE puts it in the place of a null, but after the trigger.
            Some(Some(default)) => format!("coalesce(NEW.{}, {default})", name(column)),
            _ => format!("NEW.{}", name(column)),
        };
        let equal = equal(index, &new);
        // A row enters a partial index by any column.
        let of = if index.is_partial { String::new() } else { of(index) };
        // A rowid that nobody gave is not known before the row is there: NEW has -1, which another row may have.
        let other = if described.key_is_rowid { String::new() } else { other_than(table, "NEW") };
        all.push(rival(table, "rival_insert", &index.name, "INSERT", &format!("{equal}{other}")));
        let other = other_than(table, "OLD");
        all.push(rival(
            table,
            "rival_update",
            &index.name,
            &format!("UPDATE{of}"),
            &format!("{equal}{other}"),
        ));
    }
    if let Some(rowid) = described.rowid {
        for (event, row) in [("INSERT", "NEW"), ("UPDATE", "OLD")] {
            let called = format!("rowid_{}", event.to_ascii_lowercase());
            let which = format!("r.{rowid} = NEW.{rowid}{}", other_than(table, row));
            all.push(rival(table, &called, &table.name.name, event, &which));
        }
    }
    all
}

/// Those that earlier builds made, which missed some rivals. They are made anew, and stop nothing.
pub(super) fn of_earlier(described: &Described) -> Vec<Trigger> {
    let table = &described.table;
    let mut all = events(table);
    for index in described.unique.iter().filter(|index| index.columns.is_some()) {
        let equal = equal(index, &|column| format!("NEW.{}", name(column)));
        for (event, of, row) in [("INSERT", String::new(), "NEW"), ("UPDATE", of(index), "OLD")] {
            let called = format!("rival_{}", event.to_ascii_lowercase());
            let which = format!("{equal}{}", other_than(table, row));
            all.push(rival(table, &called, &index.name, &format!("{event}{of}"), &which));
        }
    }
    all
}

fn events(table: &Table) -> Vec<Trigger> {
    let called = &table.name.name;
    // Byte for byte: 'a' and 'A', 1 and 1.0 can be the same key to the index and not to the target.
    let moved = differs(table, "OLD", "NEW");
    let (old, new) = (entry(table, "OLD"), entry(table, "NEW"));
    vec![
        trigger(table, "insert", called, "AFTER INSERT", &new),
        trigger(table, "update", called, "AFTER UPDATE", &format!("{old} WHERE {moved}; {new}")),
        trigger(table, "delete", called, "AFTER DELETE", &old),
    ]
}

/// A trigger that journals the rows that a write may remove.
fn rival(table: &Table, kind: &str, of: &str, event: &str, which: &str) -> Trigger {
    let body = format!("{} FROM {} AS r WHERE {which}", entry(table, "r"), name(&table.name.name));
    trigger(table, kind, of, &format!("BEFORE {event}"), &body)
}

fn trigger(table: &Table, kind: &str, of: &str, when: &str, body: &str) -> Trigger {
    let called = format!("tidegate_capture_{kind}.{of}");
    let text =
        format!("CREATE TRIGGER {} {when} ON {} BEGIN {body}; END", name(&called), name(&table.name.name));
    (called, text)
}

fn entry(table: &Table, row: &str) -> String {
    let columns = join((1..=table.key.len()).map(|part| format!("k{part}")));
    let parts = join(table.key_columns().map(|column| format!("{row}.{}", name(&column.name))));
    format!(
        "INSERT INTO tidegate_journal(tbl, at, {columns}) SELECT {}, {NOW}, {parts}",
        literal(&table.name.name)
    )
}

fn equal(index: &Index, new: &dyn Fn(&str) -> String) -> String {
    let columns = index.columns.iter().flatten();
    let terms = columns.map(|(column, collation)| {
        format!("r.{} = {} COLLATE {}", name(column), new(column), name(collation))
    });
    terms.collect::<Vec<_>>().join(" AND ")
}

fn of(index: &Index) -> String {
    format!(" OF {}", join(index.columns.iter().flatten().map(|(column, _)| name(column))))
}

fn other_than(table: &Table, row: &str) -> String {
    format!(" AND ({})", differs(table, "r", row))
}

fn differs(table: &Table, one: &str, other: &str) -> String {
    let part = |key: String| {
        format!(
            "{one}.{key} IS NOT {other}.{key} COLLATE BINARY OR typeof({one}.{key}) <> typeof({other}.{key})"
        )
    };
    table.key_columns().map(|column| part(name(&column.name))).collect::<Vec<_>>().join(" OR ")
}

/// Removes the triggers of a table that are ours.
pub(super) async fn drop_all(connection: &mut SqliteConnection, table: &str) -> Result<()> {
    let triggers: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'tidegate\\_capture\\_%' ESCAPE '\\'
         AND tbl_name = ?",
    )
    .bind(table.to_owned())
    .fetch_all(&mut *connection)
    .await
    .during("list triggers")?;
    for trigger in triggers {
        let text = format!("DROP TRIGGER {}", name(&trigger));
        sqlx::query(sql(text)).execute(&mut *connection).await.during("drop a trigger")?;
    }
    Ok(())
}
