//! Reads what tables there are, and what stands in the way of carrying them.

use std::collections::{BTreeSet, HashMap};

use tidegate_core::error::{Code, code};
use tidegate_core::port::{Obstacle, Selection};
use tidegate_core::{Column, Error, Result, Table, TableName, Type};

use crate::connect::Session;
use crate::error::from_driver;
use crate::form::{Form, OID_OWN};

/// A table as the server's catalog has it.
#[derive(Debug)]
struct Found {
    oid: u32,
    name: TableName,
    kind: String,
    persistence: String,
    identity: String,
    hidden: bool,
    readable: bool,
    /// The role owns it, or it is published for us already.
    publishable: bool,
    rows: i64,
    bytes: i64,
    /// A partition whose rows could not be updated any more if it were published.
    unidentified: Option<String>,
}

/// What is known of a type.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    class: String,
    base: u32,
    base_modifier: i32,
    element: u32,
    is_array: bool,
    is_binary: bool,
    native: String,
    /// Of a composite type its fields, of a range what it is of.
    parts: Vec<u32>,
}

/// The types that columns are of.
#[derive(Debug)]
pub(crate) struct Types(HashMap<u32, Known>);

/// A column's type, domains taken away.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) oid: u32,
    pub(crate) modifier: i32,
    pub(crate) kind: Type,
    /// Of an array, the type of its elements.
    pub(crate) element: Option<u32>,
    /// Whether it was a domain.
    pub(crate) is_domain: bool,
    is_binary: bool,
    pub(crate) name: String,
}

/// The fields of a composite type `t`, or what a range is of.
const PARTS: &str = "
    SELECT atttypid FROM pg_attribute
        WHERE attrelid = t.typrelid AND t.typtype = 'c' AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)";

/// The types of the columns of some tables, and those that they are made of.
fn types_query() -> String {
    format!(
        "WITH RECURSIVE used AS (
            SELECT DISTINCT atttypid AS oid FROM pg_attribute
            WHERE attrelid = ANY($1) AND attnum > 0 AND NOT attisdropped
            UNION
            SELECT v.x FROM used u JOIN pg_type t ON t.oid = u.oid
            CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem) UNION ALL {PARTS}) v(x) WHERE v.x <> 0)
        SELECT t.oid, t.typname::text, t.typtype::text, t.typbasetype, t.typtypmod, t.typelem, t.typcategory = 'A',
            t.typsend::oid <> 0 AND t.typreceive::oid <> 0, format_type(t.oid, NULL), ARRAY({PARTS})
        FROM used JOIN pg_type t ON t.oid = used.oid"
    )
}

impl Types {
    pub(crate) async fn read(session: &Session, tables: &[u32]) -> Result<Self> {
        let rows = session.query(&types_query(), &[&tables]).await.map_err(|e| from_driver(e, "describe"))?;
        let known = rows.iter().map(|row| {
            let known = Known {
                name: row.get(1),
                class: row.get(2),
                base: row.get(3),
                base_modifier: row.get(4),
                element: row.get(5),
                is_array: row.get(6),
                is_binary: row.get(7),
                native: row.get(8),
                parts: row.get(9),
            };
            (row.get(0), known)
        });
        Ok(Self(known.collect()))
    }

    pub(crate) fn resolve(&self, oid: u32, modifier: i32) -> Resolved {
        let Some(known) = self.0.get(&oid) else {
            let kind = Type::Native("unknown".into());
            let name = String::new();
            return Resolved { oid, modifier, kind, element: None, is_domain: false, is_binary: false, name };
        };
        if known.class == "d" {
            return Resolved { is_domain: true, ..self.resolve(known.base, known.base_modifier) };
        }
        let mut resolved = Resolved {
            oid,
            modifier,
            kind: Type::Native(known.native.as_str().into()),
            element: None,
            is_domain: false,
            is_binary: known.is_binary,
            name: known.name.clone(),
        };
        if known.is_array {
            let element = self.resolve(known.element, modifier);
            resolved.is_binary &= element.is_binary;
            resolved.element = Some(element.oid);
            // Elements that only their own server knows make the whole array so.
            if !matches!(element.kind, Type::Native(_)) {
                resolved.kind = Type::Array(Box::new(element.kind));
            }
        } else if known.class == "e" || oid >= OID_OWN && known.name == "citext" {
            resolved.kind = Type::Text;
        } else if let Some(kind) = Form::of(oid, &resolved.kind).kind(modifier) {
            resolved.kind = kind;
        }
        resolved
    }

    /// Whether the server's form of a type's values holds numbers that are others in each database: of objects, or of
    /// types that a database made itself, by which arrays and composite values name what is in them.
    fn holds_numbers(&self, oid: u32) -> bool {
        let Some(known) = self.0.get(&oid) else { return false };
        let names_its_own = |part: &u32| *part >= OID_OWN || self.holds_numbers(*part);
        match known.class.as_str() {
            _ if NAMES.contains(&oid) => true,
            "d" => self.holds_numbers(known.base),
            "c" => known.parts.iter().any(names_its_own),
            _ if known.is_array => names_its_own(&known.element),
            _ => known.parts.iter().any(|part| self.holds_numbers(*part)),
        }
    }
}

/// `regproc`, `regprocedure`, `regoper`, `regoperator`, `regclass`, `regtype`, `regconfig`, `regdictionary`, `regnamespace`,
/// `regrole`, `regcollation`: shown as names, kept and sent as numbers that are others in each database.
const NAMES: [u32; 11] = [24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];

/// A table that was never analysed has no number of rows: then its size says something, without long values, which are
/// kept apart.
const TABLES: &str = "
    SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
        row_security_active(c.oid), has_table_privilege(c.oid, 'SELECT'),
        pg_has_role(c.relowner, 'USAGE') OR EXISTS (SELECT FROM pg_publication_rel r
            JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = c.oid AND p.pubname ~ '^tidegate_'),
        (SELECT coalesce(sum(greatest(l.reltuples, CASE WHEN l.reltuples <= 0
                THEN pg_relation_size(l.oid) / 100 END, 0)), 0)::int8
            FROM (SELECT c.oid WHERE c.relkind <> 'p' UNION ALL
                SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf AND c.relkind = 'p') leaf
            JOIN pg_class l USING (oid)),
        CASE WHEN c.relkind = 'p' THEN (SELECT coalesce(sum(pg_table_size(p.relid)), 0)::bigint
            FROM pg_partition_tree(c.oid) p WHERE p.isleaf)
            WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) ELSE 0 END,
        CASE WHEN c.relkind = 'p' THEN (SELECT min(p.relid::regclass::text) FROM pg_partition_tree(c.oid) p
            JOIN pg_class l ON l.oid = p.relid WHERE p.isleaf AND (l.relreplident = 'n' OR l.relreplident = 'd'
                AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary))) END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f', 'm')";

const OURS_AND_THEIRS: &str = " AND n.nspname <> 'tidegate' AND n.nspname <> 'information_schema'
        AND n.nspname !~ '^pg_' AND NOT c.relispartition
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
            AND d.deptype = 'e')
    ORDER BY n.nspname, c.relname";

const COLUMNS: &str = "
    SELECT a.attrelid, a.attname::text, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated <> '',
        format_type(a.atttypid, a.atttypmod), a.attnum,
        coalesce((SELECT NOT k.collisdeterministic FROM pg_collation k WHERE k.oid = a.attcollation), false),
        a.atthasdef OR a.atthasmissing OR a.attidentity <> ''
            OR EXISTS (SELECT FROM pg_type d WHERE d.oid = a.atttypid AND d.typdefault IS NOT NULL)
    FROM pg_attribute a WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum";

const KEYS: &str = "
    SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate, i.indkey::int2[], i.indnkeyatts
    FROM pg_index i WHERE i.indrelid = ANY($1) AND (i.indisprimary OR i.indisreplident)";

/// What a materialized view has follows from other tables, as with any view: it is none of all tables.
const DERIVED: &str = " AND c.relkind <> 'm'";

/// Describes the tables of a selection.
pub(crate) async fn describe(session: &Session, which: &Selection) -> Result<(Vec<Table>, Vec<Obstacle>)> {
    let mut obstacles = Vec::new();
    let found = find(session, which, &mut obstacles).await?;
    let oids: Vec<u32> = found.iter().map(|table| table.oid).collect();
    let types = Types::read(session, &oids).await?;
    let columns = session.query(COLUMNS, &[&oids]).await.map_err(|e| from_driver(e, "describe"))?;
    let keys = session.query(KEYS, &[&oids]).await.map_err(|e| from_driver(e, "describe"))?;

    let mut tables = Vec::new();
    for found in found {
        let mut obstacle = |column: Option<&str>, error: Error| {
            let error = error.with("table", &found.name);
            obstacles.push(Obstacle {
                table: Some(found.name.clone()),
                column: column.map(str::to_owned),
                error,
            });
        };
        let mut table = Table {
            name: found.name.clone(),
            native_id: found.oid,
            columns: Vec::new(),
            key: Vec::new(),
            rows_estimated: u64::try_from(found.rows).unwrap_or(0),
            bytes_estimated: u64::try_from(found.bytes).unwrap_or(0),
        };
        let mut numbers = HashMap::new();
        let mut foldable = BTreeSet::new();
        for row in columns.iter().filter(|row| row.get::<_, u32>(0) == found.oid) {
            if row.get::<_, bool>(5) {
                continue;
            }
            let name: String = row.get(1);
            let resolved = types.resolve(row.get(2), row.get(3));
            if !resolved.is_binary {
                obstacle(
                    Some(&name),
                    refused(code::TYPE_REFUSED, "the type has no binary form")
                        .with("type", row.get::<_, String>(6)),
                );
            }
            // A list of texts is written with the target's own numbers.
            let is_list = matches!(&resolved.kind, Type::Array(items) if **items == Type::Text);
            if !is_list && types.holds_numbers(row.get(2)) {
                obstacle(
                    Some(&name),
                    refused(
                        code::TYPE_REFUSED,
                        "such values hold numbers of objects or types of this database alone",
                    )
                    .with("type", row.get::<_, String>(6))
                    .hint("drop the column in the mapping; a column of text beside it may have what it says"),
                );
            }
            let at = table.columns.len();
            numbers.insert(row.get::<_, i16>(7), at);
            if row.get::<_, bool>(8) || resolved.name == "citext" {
                foldable.insert(at);
            }
            let native = if resolved.is_domain { native_of(session, &resolved).await? } else { row.get(6) };
            let nullable = !row.get::<_, bool>(4);
            let native_id = resolved.oid;
            table.columns.push(Column {
                name,
                kind: resolved.kind,
                native,
                native_id,
                nullable,
                generated: false,
                has_default: row.get(9),
            });
        }
        // One that is not moved anyway needs no key.
        match (not_moved(&found), key_of(&found, &keys, &numbers)) {
            (Some(error), key) => {
                obstacle(None, error);
                table.key = key.unwrap_or_default();
            }
            (None, Err(error)) => obstacle(None, error),
            (None, Ok(key)) => table.key = key,
        }
        for column in table.key.iter().map(|at| (&table.columns[*at], foldable.contains(at))) {
            let (column, is_foldable) = column;
            if is_foldable {
                obstacle(
                    Some(&column.name),
                    refused(code::KEY_UNFIT, "different texts are equal keys").hint(
                        "use a deterministic collation for the key, or leave the table out (--exclude)",
                    ),
                );
            } else if column.native_id < OID_OWN && !Form::of(column.native_id, &column.kind).is_fit_for_key()
                || column.native_id >= OID_OWN && column.kind != Type::Text
            {
                obstacle(
                    Some(&column.name),
                    refused(code::KEY_UNFIT, "keys of this type cannot be compared")
                        .with("type", &column.native),
                );
            }
        }
        tables.push(table);
    }
    server(session, &mut obstacles).await?;
    Ok((tables, obstacles))
}

async fn find(session: &Session, which: &Selection, obstacles: &mut Vec<Obstacle>) -> Result<Vec<Found>> {
    let failed = |e| from_driver(e, "describe");
    let rows = match which {
        Selection::All => {
            session.query(&format!("{TABLES}{DERIVED}{OURS_AND_THEIRS}"), &[]).await.map_err(failed)?
        }
        Selection::These(names) => {
            let mut rows = Vec::new();
            let sql = format!("{TABLES} AND n.nspname = $1 AND c.relname = $2");
            for name in names {
                let schema = if name.schema.is_empty() { "public" } else { &name.schema };
                match session.query_opt(&sql, &[&schema, &name.name]).await.map_err(failed)? {
                    Some(row) => rows.push(row),
                    None => {
                        let name = TableName::new(schema, name.name.as_str());
                        let error = Error::new(code::TABLE_MISSING, format!("there is no table {name}"))
                            .with("table", &name);
                        obstacles.push(Obstacle { table: Some(name), column: None, error });
                    }
                }
            }
            rows
        }
    };
    Ok(rows
        .iter()
        .map(|row| Found {
            oid: row.get(0),
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            kind: row.get(3),
            persistence: row.get(4),
            identity: row.get(5),
            hidden: row.get(6),
            readable: row.get(7),
            publishable: row.get(8),
            rows: row.get(9),
            bytes: row.get(10),
            unidentified: row.get(11),
        })
        .collect())
}

/// The type below a domain, as a table definition would have it.
pub(crate) async fn native_of(session: &Session, resolved: &Resolved) -> Result<String> {
    let sql = "SELECT format_type($1, $2)";
    let row = session.query_one(sql, &[&resolved.oid, &resolved.modifier]).await;
    Ok(row.map_err(|e| from_driver(e, "describe"))?.get(0))
}

/// The key: what the server's log names rows by, if that tells every row from every other.
fn key_of(found: &Found, keys: &[tokio_postgres::Row], numbers: &HashMap<i16, usize>) -> Result<Vec<usize>> {
    let by_index = found.identity == "i";
    let wanted = |row: &&tokio_postgres::Row| {
        row.get::<_, u32>(0) == found.oid && row.get::<_, bool>(if by_index { 2 } else { 1 })
    };
    if found.identity == "n" {
        return Err(refused(code::KEY_MISSING, "the table's replica identity is nothing")
            .hint("ALTER TABLE … REPLICA IDENTITY DEFAULT, or leave the table out (--exclude)"));
    }
    if let Some(partition) = &found.unidentified {
        return Err(refused(code::KEY_MISSING, "a partition has no replica identity")
            .with("partition", partition)
            .hint("give the partition a primary key and REPLICA IDENTITY DEFAULT, or an index as the table has it; or leave \
                the table out (--exclude)"));
    }
    let index = keys.iter().find(wanted).ok_or_else(|| {
        refused(code::KEY_MISSING, "the table has no primary key").hint(
            "add a primary key, name a unique index as replica identity, or leave the table out (--exclude)",
        )
    })?;
    if !index.get::<_, bool>(3) {
        return Err(refused(code::KEY_UNFIT, "the key is checked at the end of a transaction")
            .hint("make the constraint NOT DEFERRABLE, or leave the table out (--exclude)"));
    }
    let columns: Vec<i16> = index.get(4);
    let count = usize::try_from(index.get::<_, i16>(5)).unwrap_or(0);
    let places: Option<Vec<usize>> =
        columns.iter().take(count).map(|number| numbers.get(number).copied()).collect();
    places.ok_or_else(|| refused(code::KEY_UNFIT, "a column of the key is computed by the server"))
}

fn not_moved(found: &Found) -> Option<Error> {
    let not_moved = |what| {
        Some(
            refused(code::CAPABILITY_MISSING, what)
                .hint("leave it out (--exclude), and make it anew at the target"),
        )
    };
    match (found.kind.as_str(), found.persistence.as_str()) {
        ("f", _) => not_moved("this is a foreign table"),
        ("m", _) => not_moved("this is a materialized view"),
        (_, "u") => not_moved("the table is unlogged: its changes are not captured"),
        (_, "t") => not_moved("the table is temporary"),
        _ if !found.readable => {
            Some(refused(code::ACCESS_DENIED, "the role may not read the table").hint("GRANT SELECT"))
        }
        _ if found.hidden => Some(
            refused(code::POLICY_HIDES_ROWS, "a row-level policy hides rows from this role")
                .hint("use the table's owner, or a role with BYPASSRLS"),
        ),
        _ if !found.publishable => Some(
            refused(code::ACCESS_DENIED, "the role does not own the table, and only who does may publish it")
                .hint("GRANT the owner's role to it (tidegate grants --for source URL prints the script)"),
        ),
        _ => None,
    }
}

const SERVER: &str = "
    SELECT current_setting('server_version_num')::int4, current_setting('server_encoding'),
        current_setting('wal_level'), pg_is_in_recovery(),
        current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots
            WHERE slot_name !~ '^tidegate_'),
        current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication),
        (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
    has_database_privilege(current_database(), 'CREATE') OR EXISTS (SELECT FROM pg_publication
        WHERE pubname ~ '^tidegate_')";

/// The first one that sends changes in binary form and before their end.
const VERSION_OLDEST: i32 = 140_000;

/// What stands in the way of every table.
async fn server(session: &Session, obstacles: &mut Vec<Obstacle>) -> Result<()> {
    let row = session.query_one(SERVER, &[]).await.map_err(|e| from_driver(e, "describe"))?;
    let (version, encoding, level): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
    let mut add = |error| obstacles.push(Obstacle { table: None, column: None, error });
    if version < VERSION_OLDEST {
        add(refused(code::VERSION_UNSUPPORTED, "the server is older than PostgreSQL 14")
            .with("version", version));
    }
    if encoding != "UTF8" {
        add(refused(code::TYPE_REFUSED, "the database's encoding is not UTF8")
            .with("encoding", encoding)
            .hint("restore a dump into a database with encoding UTF8, and move that one"));
    }
    if row.get::<_, bool>(3) {
        add(refused(code::CAPABILITY_MISSING, "the server is a standby").hint("name the primary server"));
    } else if level != "logical" {
        add(refused(code::WAL_LEVEL, "the server does not log what logical replication needs")
            .with("wal_level", level)
            .hint("ALTER SYSTEM SET wal_level = logical, then restart the server"));
    } else if row.get::<_, i64>(4) <= 0 {
        add(refused(code::SLOT_UNAVAILABLE, "no replication slot is free")
            .hint("raise max_replication_slots, or drop one"));
    } else if row.get::<_, i64>(5) <= 0 {
        add(refused(code::SLOT_UNAVAILABLE, "no sender of the log is free").hint("raise max_wal_senders"));
    }
    if !row.get::<_, bool>(7) {
        add(refused(code::ACCESS_DENIED, "the role may not make a publication in this database")
            .hint("GRANT CREATE ON DATABASE … (tidegate grants --for source URL prints the script)"));
    }
    if !row.get::<_, bool>(6) {
        add(refused(code::ACCESS_DENIED, "the role may not replicate").hint("ALTER ROLE … REPLICATION"));
    }
    Ok(())
}

fn refused(code: Code, message: &'static str) -> Error {
    Error::new(code, message)
}
