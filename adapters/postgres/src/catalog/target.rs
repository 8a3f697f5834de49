//! The server as a target: how columns are held, what is there, what is made.

use std::borrow::Cow;
use std::sync::Arc;

use tidegate_core::error::code;
use tidegate_core::port::{Conversions, Fit, NOT_EMPTY, Obstacle, convert_argument};
use tidegate_core::{Column, Encoding, Error, Result, Table, TableName, Type, Value, text};

use crate::catalog::describe::{Resolved, Types, native_of};
use crate::codec::ENCODING;
use crate::connect::Session;
use crate::encode::Taken;
use crate::error::from_driver;
use crate::form::{Form, OID_OWN};
use crate::sql;

/// How a column of a source is held here.
pub(crate) fn fit(column: &Column, encoding: Encoding, conversions: &Conversions) -> Result<Fit> {
    if let Some(to) = column.conversion(conversions) {
        let (native, kind) = match to {
            "string" => ("text", Type::Text),
            "json" => ("json", Type::Json),
            other => {
                return Err(refused(column, "the conversion is unknown").with("conversion", other));
            }
        };
        let note = Some(format!("{} → {native}", column.native));
        return Ok(Fit { native: native.to_owned(), kind, note });
    }
    if column.kind == Type::Any {
        let note = Some("any type → text, as JSON where it is no text".to_owned());
        return Ok(Fit { native: "text".to_owned(), kind: Type::Any, note });
    }
    let native = if encoding == ENCODING { column.native.clone() } else { native(column, &column.kind)? };
    Ok(Fit { native, kind: column.kind.clone(), note: None })
}

fn native(column: &Column, kind: &Type) -> Result<String> {
    Ok(match kind {
        Type::Bool => "boolean",
        Type::Int { bits: 16 } => "smallint",
        Type::Int { bits: 32 } => "integer",
        Type::Int { .. } => "bigint",
        Type::Float { bits: 32 } => "real",
        Type::Float { .. } => "double precision",
        Type::Decimal { precision: Some(precision), scale } => {
            return Ok(format!("numeric({precision},{})", scale.unwrap_or(0)));
        }
        Type::Decimal { .. } => "numeric",
        Type::Text => "text",
        Type::Bytes => "bytea",
        Type::Uuid => "uuid",
        Type::Date => "date",
        Type::Time => "time without time zone",
        Type::Timestamp => "timestamp without time zone",
        Type::TimestampTz => "timestamp with time zone",
        Type::Json | Type::Document => "json",
        Type::Array(element) => {
            let mut element: &Type = element;
            while let Type::Array(inner) = element {
                element = inner;
            }
            return Ok(format!("{}[]", native(column, element)?));
        }
        _ => {
            return Err(refused(column, "PostgreSQL has no type for such values")
                .hint(convert_argument(column.conversion_name(), "string")));
        }
    }
    .to_owned())
}

fn refused(column: &Column, message: &'static str) -> Error {
    Error::new(code::TYPE_REFUSED, message).with("column", &column.name).with("type", &column.native)
}

/// The value that a column of that kind gives back.
pub(crate) fn stored<'a>(kind: &Type, value: Value<'a>) -> Value<'a> {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        (Type::Any, value) => Value::Text(text::any(&value).into()),
        (Type::Text, Value::Text(v) | Value::Json(v)) => Value::Text(v),
        (Type::Text, Value::Array(list)) => Value::Text(text::any(&Value::Array(list)).into()),
        (Type::Text, value) => Value::Text(value.to_string().into()),
        (Type::Json, Value::Text(v)) => Value::Json(v),
        (Type::Decimal { .. }, Value::Int(v)) => Value::Decimal(v.to_string().into()),
        (Type::Float { bits: 64 }, Value::Float32(v)) => Value::Float(v.into()),
        // A list of lists is one list of two dimensions.
        (Type::Array(_), Value::Array(list)) => {
            Value::Array(list.into_iter().map(|item| stored(kind, item)).collect())
        }
        (Type::Array(items), value) => stored(items, value),
        (_, value) => value,
    }
}

/// A column of a table that is there.
#[derive(Debug)]
pub(crate) struct There {
    pub(crate) name: String,
    pub(crate) taken: Taken,
    /// The type as a table definition would have it, domains taken away.
    pub(crate) native: String,
    /// A row without it is refused.
    pub(crate) is_needed: bool,
    pub(crate) generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: an insert may say another value, an update may not.
    pub(crate) is_fixed: bool,
    /// Different texts are equal there.
    is_coarse: bool,
}

const COLUMNS: &str = "
    SELECT a.attname::text, a.atttypid, a.atttypmod, a.attgenerated <> '',
        a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', format_type(a.atttypid, a.atttypmod),
        a.attidentity = 'a',
        EXISTS (SELECT FROM pg_collation k WHERE NOT k.collisdeterministic AND (k.oid = a.attcollation
            OR k.oid IN (SELECT part.coll FROM pg_index i,
                unnest(i.indkey::int2[], i.indcollation::oid[]) part (number, coll)
                WHERE i.indrelid = a.attrelid AND i.indisunique AND part.number = a.attnum)))
    FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// The columns of a table; `None` if there is no such table.
pub(crate) async fn columns(session: &Session, table: &Table) -> Result<Option<(u32, Vec<There>)>> {
    let failed = |e| from_driver(e, "inspect");
    let row = session
        .query_one("SELECT to_regclass($1)::oid", &[&sql::table(&table.name)])
        .await
        .map_err(failed)?;
    let Some(oid) = row.get::<_, Option<u32>>(0) else { return Ok(None) };
    let types = Types::read(session, &[oid]).await?;
    let rows = session.query(COLUMNS, &[&oid]).await.map_err(failed)?;
    let mut there = Vec::new();
    for row in &rows {
        let resolved = types.resolve(row.get(1), row.get(2));
        let native = if resolved.is_domain { native_of(session, &resolved).await? } else { row.get(5) };
        let Resolved { oid, modifier, kind, element, name, .. } = resolved;
        let is_citext = oid >= OID_OWN && name == "citext";
        there.push(There {
            name: row.get(0),
            native,
            taken: Taken { oid, modifier, kind, element },
            is_needed: row.get(4),
            generated: row.get(3),
            is_fixed: row.get(6),
            is_coarse: row.get::<_, bool>(7) || is_citext,
        });
    }
    Ok(Some((oid, there)))
}

/// Looks at tables as targets.
pub(crate) async fn inspect(
    session: &Session,
    tables: &[Arc<Table>],
    allow_non_empty: bool,
) -> Result<Vec<Obstacle>> {
    let mut obstacles = Vec::new();
    for table in tables {
        let mut add = |column: Option<&str>, error: Error| {
            let error = error.with("table", &table.name);
            let column = column.map(str::to_owned);
            obstacles.push(Obstacle { table: Some(table.name.clone()), column, error });
        };
        if table.name.schema == "tidegate" || table.name.schema.starts_with("pg_") {
            let what = "a table cannot be in this schema: PostgreSQL, or tidegate, keeps it for itself";
            add(None, Error::new(code::MAPPING_INVALID, what).hint("give it another name with --map"));
            continue;
        }
        let Some((oid, there)) = columns(session, table).await? else {
            for column in &table.columns {
                if !type_exists(session, &column.native).await? {
                    add(
                        Some(&column.name),
                        refused(column, "the type is not there").hint("create the type at the target first"),
                    );
                }
            }
            continue;
        };
        let is_key = |column: &Column| table.key_columns().any(|key| key.name == column.name);
        for column in &table.columns {
            match there.iter().find(|there| there.name == column.name) {
                None => add(Some(&column.name), differs("the column is not there")),
                Some(there) if there.generated => {
                    add(Some(&column.name), differs("the column is computed there"))
                }
                Some(there) if !keeps(column, there) => add(
                    Some(&column.name),
                    differs(format!(
                        "the column is {} there, which does not keep every value of {} as it is",
                        there.native, column.native
                    ))
                    .with("has", &there.native)
                    .with("wanted", &column.native)
                    .hint(format!("make it {} there, or drop the table and let it be created", column.native)),
                ),
                Some(there) if is_key(column) && merges(column, there) => add(
                    Some(&column.name),
                    differs(format!(
                        "different keys of the source would be one row there: its type, {}, or its collation calls them equal",
                        there.native
                    ))
                        .with("has", &there.native)
                        .hint("make it text of a deterministic collation there, or drop the table and let it be created"),
                ),
                Some(there) if there.is_fixed && !is_key(column) => {
                    add(
                        Some(&column.name),
                        differs("the column is GENERATED ALWAYS AS IDENTITY there and cannot be updated")
                            .hint("at the target: ALTER TABLE … ALTER COLUMN … SET GENERATED BY DEFAULT"),
                    )
                }
                Some(_) => {}
            }
        }
        for there in there.iter().filter(|there| there.is_needed && table.position(&there.name).is_none()) {
            add(Some(&there.name), differs("the target needs a column that the source does not have"));
        }
        if !has_key(session, oid, table).await? {
            add(None, differs(format!("the table has not the key {}", sql::key_list(table))));
        }
        if !allow_non_empty {
            let sql = format!("SELECT EXISTS (SELECT FROM {})", sql::table(&table.name));
            let row = session.query_one(&sql, &[]).await.map_err(|e| from_driver(e, "inspect"))?;
            if row.get(0) {
                add(None, Error::new(code::TARGET_NOT_EMPTY, "the table is not empty").hint(NOT_EMPTY));
            }
        }
    }
    Ok(obstacles)
}

/// Keeps triggers and foreign keys from acting in a session, if its role may.
pub(crate) const FIRES_NOT: &str = "SET session_replication_role = replica";

/// Whether deleting a row of a table changes rows that refer to it, where foreign keys act.
pub(crate) async fn cascades(session: &Session, table: &TableName) -> Result<bool> {
    let sql =
        "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confdeltype IN ('c', 'n', 'd')
        AND confrelid = to_regclass($1))";
    let row = session.query_one(sql, &[&sql::table(table)]).await;
    Ok(row.map_err(|e| from_driver(e, "look at a table"))?.get(0))
}

/// What would make rows others than those that are written, or lose them: of the table and of its partitions. Triggers and
/// rules act as their state and the session's role of replication say; one for UPDATE that is off keeps the server from
/// upserts even so.
const ACTING: &str = "
    WITH parts AS (SELECT to_regclass($1)::oid AS oid UNION SELECT relid FROM pg_partition_tree(to_regclass($1))),
        acts (state) AS (VALUES ('A'), (CASE WHEN $2 THEN 'O' ELSE 'R' END))
    SELECT what, named, of::regclass::text FROM (
        SELECT 1 AS rank, 'unlogged' AS what, oid::regclass::text AS named, oid AS of FROM pg_class JOIN parts USING (oid)
            WHERE relpersistence <> 'p' AND relkind = 'r'
        UNION ALL SELECT 2, 'rule', rulename::text, ev_class FROM pg_rewrite JOIN parts ON ev_class = parts.oid
            WHERE ev_type = '2' OR ev_type IN ('3', '4') AND ev_enabled::text IN (SELECT state FROM acts)
        UNION ALL SELECT 3, 'trigger', tgname::text, tgrelid FROM pg_trigger JOIN parts ON tgrelid = parts.oid
            WHERE NOT tgisinternal AND tgtype & 3 = 3 AND tgenabled::text IN (SELECT state FROM acts)
    ) found ORDER BY rank, named LIMIT 1";

/// Tables of the target whose rows would not be what is written.
pub(crate) async fn acting(session: &Session, tables: &[Arc<Table>]) -> Result<Vec<Obstacle>> {
    // One transaction: whatever comes of it, the session is as before.
    let fires_not = format!("{FIRES_NOT}; RESET session_replication_role");
    let fires = session.batch_execute(&fires_not).await.is_err();
    let mut obstacles = Vec::new();
    for table in tables {
        let mut add = |error: Error| {
            let error = error.with("table", &table.name);
            obstacles.push(Obstacle { table: Some(table.name.clone()), column: None, error });
        };
        if fires && cascades(session, &table.name).await? {
            add(would_cascade());
        }
        let row = session.query_opt(ACTING, &[&sql::table(&table.name), &fires]).await;
        let Some(row) = row.map_err(|e| from_driver(e, "inspect"))? else { continue };
        let (what, named, of): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let quoted = sql::ident(named);
        let right = if fires { ", or let the role set session_replication_role" } else { "" };
        add(match what {
            "unlogged" => differs(format!("{named} is unlogged: a crash of the server would empty it"))
                .hint(format!("at the target: ALTER TABLE {of} SET LOGGED")),
            "rule" => differs(format!("the rule {named} puts other statements in the place of ours"))
                .hint(format!("at the target, until the cut-over: DROP RULE {quoted} ON {of}")),
            _ => differs(format!(
                "the trigger {named}, which acts before a row is written, may change it or leave it out"
            ))
            .hint(format!(
                "at the target, until the cut-over: ALTER TABLE {of} DISABLE TRIGGER {quoted}{right}"
            )),
        }
        .with(what.to_owned(), named));
    }
    Ok(obstacles)
}

pub(crate) fn would_cascade() -> Error {
    let what = "deleting a row would change rows that refer to it (ON DELETE), and the role may not keep the target from it";
    let hint = "let the role set session_replication_role, or drop the foreign keys that refer to the table until the cut-over";
    Error::new(code::CONSTRAINT_VIOLATED, what).hint(hint)
}

fn differs(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(code::TARGET_DIFFERS, message)
}

async fn type_exists(session: &Session, native: &str) -> Result<bool> {
    let row = session.query_one("SELECT to_regtype($1) IS NOT NULL", &[&parts(native).0]).await;
    Ok(row.map_err(|e| from_driver(e, "inspect"))?.get(0))
}

/// A type without what is in its brackets, and that.
fn parts(native: &str) -> (String, &str) {
    match (native.find('('), native.find(')')) {
        (Some(open), Some(close)) if open < close => {
            (format!("{}{}", &native[..open], &native[close + 1..]), &native[open + 1..close])
        }
        _ => (native.to_owned(), ""),
    }
}

/// Whether a column that is there keeps every value as it is, or refuses it by name when it comes. A type that rounds,
/// pads, cuts or sorts what it is given says nothing of it.
fn keeps(column: &Column, there: &There) -> bool {
    let (wanted, limit) = parts(&column.native);
    let (has, limit_there) = parts(&there.native);
    if wanted == has {
        return limit_there.is_empty() || limit == limit_there || is_wider(&has, limit_there, limit);
    }
    let (mut from, mut to, mut oid) = (&column.kind, &there.taken.kind, there.taken.oid);
    while let (Type::Array(item), Type::Array(items)) = (from, to) {
        (from, to, oid) = (item, items, there.taken.element.unwrap_or(oid));
    }
    let is_text = *from == Type::Text;
    match (from, to) {
        (Type::Int { bits }, Type::Int { bits: wider })
        | (Type::Float { bits }, Type::Float { bits: wider }) => bits <= wider,
        (Type::Int { .. }, Type::Decimal { scale, .. }) => scale.is_none_or(|scale| scale == 0),
        (Type::Text | Type::Json | Type::Document, to) => match Form::of(oid, to) {
            Form::Text => has != "name" && (is_text || oid < OID_OWN),
            Form::Bpchar => is_text && limit_there.is_empty(),
            Form::Char => is_text,
            // As it was written; `jsonb` is not.
            form => form == Form::Json,
        },
        _ => false,
    }
}

/// `text` and `character varying`.
const TEXTS: [u32; 2] = [25, 1043];

/// Whether a column that got another type has in every row what it had. Most changes of a type write all rows anew, and the
/// log has none of them.
pub(crate) fn keeps_rows(before: &Column, now: &Column) -> bool {
    if before.native_id >= OID_OWN && now.native_id >= OID_OWN {
        return before.kind == now.kind;
    }
    let is_text = |column: &Column| TEXTS.contains(&column.native_id);
    if before.native_id != now.native_id && !(is_text(before) && is_text(now)) {
        return false;
    }
    let ((bare, limit), (_, other)) = (parts(&now.native), parts(&before.native));
    let length = |limit: &str| limit.parse::<u32>().unwrap_or(u32::MAX);
    // A shorter one cuts spaces.
    let is_cut = bare.starts_with("character varying") && length(limit) < length(other);
    limit.is_empty() || limit == other || !is_cut && is_wider(&bare, limit, other)
}

/// Whether a type with this limit takes all that the same type has with the other one. What is too long for a text's
/// limit, or has too many digits, is refused when it comes.
fn is_wider(bare: &str, limit: &str, other: &str) -> bool {
    let numbers = |limit: &str| limit.split(',').map(|n| n.trim().parse::<i32>().ok()).collect::<Vec<_>>();
    match (bare.trim_end_matches("[]"), &numbers(limit)[..], &numbers(other)[..]) {
        ("character varying", ..) => true,
        ("numeric", [Some(_), scale], [Some(_), same]) => scale == same,
        (
            "timestamp without time zone" | "timestamp with time zone" | "time without time zone",
            [Some(places)],
            [others],
        ) => *places >= others.unwrap_or(6),
        _ => false,
    }
}

/// Whether texts that the source's key tells apart are equal there.
fn merges(column: &Column, there: &There) -> bool {
    // Of `character(n)`, spaces at the end mean nothing.
    let is_padded = Form::of(there.taken.oid, &there.taken.kind) == Form::Bpchar;
    let was_padded = column.native.starts_with("character(") || column.native == "bpchar";
    there.is_coarse || is_padded && !was_padded
}

async fn has_key(session: &Session, oid: u32, table: &Table) -> Result<bool> {
    let sql = "
        SELECT (SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1]))
        FROM pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid
            AND i.indpred IS NULL AND i.indexprs IS NULL";
    let rows = session.query(sql, &[&oid]).await.map_err(|e| from_driver(e, "inspect"))?;
    let mut key: Vec<&str> = table.key_columns().map(|column| column.name.as_str()).collect();
    key.sort_unstable();
    Ok(rows.iter().any(|row| row.get::<_, Option<Vec<String>>>(0).is_some_and(|names| names == key)))
}

/// Creates the tables that are not there.
pub(crate) async fn create(session: &Session, tables: &[Arc<Table>]) -> Result<()> {
    if let Some(obstacle) = inspect(session, tables, true).await?.into_iter().next() {
        return Err(obstacle.error);
    }
    for table in tables {
        let schema = if table.name.schema.is_empty() { "public" } else { &table.name.schema };
        let row = session
            .query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&sql::ident(schema)])
            .await
            .map_err(|e| from_driver(e, "create"))?;
        let mut statement = String::new();
        // Asked first: the statement needs a right that a role may not have where the schema is there.
        if !row.get::<_, bool>(0) {
            statement.push_str(&format!("CREATE SCHEMA IF NOT EXISTS {};", sql::ident(schema)));
        }
        let columns = table.columns.iter().map(|column| {
            let not_null = if column.nullable { "" } else { " NOT NULL" };
            format!("{} {}{not_null}", sql::ident(&column.name), column.native)
        });
        let mut parts: Vec<String> = columns.collect();
        if !table.key.is_empty() {
            parts.push(format!("PRIMARY KEY ({})", sql::key_list(table)));
        }
        let name = sql::table(&table.name);
        statement.push_str(&format!("CREATE TABLE IF NOT EXISTS {name} ({})", parts.join(", ")));
        session
            .batch_execute(&statement)
            .await
            .map_err(|e| from_driver(e, "create").with("table", &table.name))?;
    }
    Ok(())
}

/// Adds the columns that tables lack.
pub(crate) async fn extend(session: &Session, tables: &[Arc<Table>]) -> Result<()> {
    for table in tables {
        let Some((_, there)) = columns(session, table).await? else {
            return Err(Error::new(code::TABLE_MISSING, "the table is not there").with("table", &table.name));
        };
        // Asked first: the statement waits for everybody who reads the table, whether or not there is work to do.
        let lacking =
            table.columns.iter().filter(|column| there.iter().all(|there| there.name != column.name));
        let parts: Vec<String> = lacking
            .map(|column| format!("ADD COLUMN IF NOT EXISTS {} {}", sql::ident(&column.name), column.native))
            .collect();
        if !parts.is_empty() {
            let statement = format!("ALTER TABLE {} {}", sql::table(&table.name), parts.join(", "));
            session
                .batch_execute(&statement)
                .await
                .map_err(|e| from_driver(e, "add a column").with("table", &table.name))?;
        }
    }
    match inspect(session, tables, true).await?.into_iter().next() {
        Some(obstacle) => Err(obstacle.error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(native: &str, kind: Type) -> Column {
        Column { native: native.to_owned(), ..Column::new("c", kind) }
    }

    #[test]
    fn a_type_of_our_own_stays_and_others_are_mapped_or_refused() {
        let none = Conversions::new();
        let same = fit(&column("numeric(12,2)", Type::Text), ENCODING, &none).unwrap();
        assert_eq!(same.native, "numeric(12,2)");
        let list = Type::Array(Box::new(Type::Array(Box::new(Type::Int { bits: 32 }))));
        assert_eq!(fit(&column("", list), Encoding::CANONICAL, &none).unwrap().native, "integer[]");
        let error = fit(&column("", Type::Native("cube".into())), Encoding::CANONICAL, &none).unwrap_err();
        assert_eq!(error.code(), code::TYPE_REFUSED);
        let conversions = Conversions::from([("interval".to_owned(), "string".to_owned())]);
        let interval = column("interval(3)", Type::Native("interval".into()));
        assert_eq!(fit(&interval, ENCODING, &conversions).unwrap().kind, Type::Text);
    }
}
