//! The configuration file, and what it and the flags come to.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tidegate_core::error::code;
use tidegate_core::port::{Conversions, Selection, StateStore, Store, Transform};
use tidegate_core::{Endpoint, Error, FlowName, Result, SystemClock, SystemIds, TableName};
use tidegate_flow::via::{Carried, Via};
use tidegate_flow::{Flow, Options, Transformed, Wanted};
use xxhash_rust::xxh3::xxh3_64;

use crate::arguments::{Common, Ends, Flags, Moved};
use crate::mapping::{Map, Mapping, table_name};
use crate::registry::Registry;

/// The configuration file of a migration.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    /// The migration itself.
    pub(crate) run: Run,
    /// Where rows come from.
    pub(crate) source: End,
    /// Where rows go.
    pub(crate) target: End,
    /// The crawl and the writing.
    pub(crate) copy: Copy,
    /// What a migration may cost.
    pub(crate) limits: Limits,
    /// Conversions of types that have no exact equal: type of the source = form in the target.
    pub(crate) convert: BTreeMap<String, String>,
    /// What is done to the rows of tables on their way.
    pub(crate) map: Vec<Map>,
}

/// The file of `--transform`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Maps {
    map: Vec<Map>,
}

/// The migration itself.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Run {
    /// Its name.
    pub(crate) name: Option<String>,
    /// URL of the store that keeps its state; the target if absent.
    pub(crate) state: Option<String>,
    /// URL of the broker that everything goes through to the target; none if absent.
    pub(crate) via: Option<String>,
}

/// One of the two databases.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct End {
    /// Its URL. `${NAME}` stands for an environment variable.
    pub(crate) url: Option<String>,
    /// The tables (source alone); all if absent.
    pub(crate) tables: Vec<String>,
    /// Tables that are left out (source alone).
    pub(crate) exclude: Vec<String>,
}

/// The crawl and the writing.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Copy {
    /// Rows a chunk has at most.
    pub(crate) chunk_rows: Option<NonZeroUsize>,
    /// Bytes a chunk has at most, but for its last row.
    pub(crate) chunk_bytes: Option<NonZeroUsize>,
    /// Reads at the same time, from 1 to 64.
    #[serde(deserialize_with = "workers")]
    #[schemars(range(min = 1, max = 64))]
    pub(crate) workers: Option<usize>,
    /// Changes applied in one transaction at most.
    pub(crate) batch_changes: Option<NonZeroUsize>,
    /// Allow rows in the target's tables.
    pub(crate) allow_non_empty: bool,
}

/// What a migration may cost.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Bytes of log or journal that the source may keep for the migration; the run stops beyond it.
    pub(crate) held_bytes_max: Option<u64>,
}

/// The most that read at the same time.
pub(crate) const WORKERS_MAX: u64 = 64;

fn workers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let number = u64::deserialize(from)?;
    let is_fine = (1..=WORKERS_MAX).contains(&number);
    let number = usize::try_from(number).ok().filter(|_| is_fine);
    number
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format!("workers is a number from 1 to {WORKERS_MAX}")))
}

impl File {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        read_toml(path)
    }
}

fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::new(code::CONFIG_INVALID, format!("cannot read {}: {e}", path.display())))?;
    // The library's message has line, column, the words that are known, and a picture of the place.
    toml::from_str(&text).map_err(|e| {
        Error::new(code::CONFIG_INVALID, format!("{}: {}", path.display(), e.to_string().trim_end()))
    })
}

/// What a verb works with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: FlowName,
    pub(crate) source: Arc<dyn Store>,
    pub(crate) target: Arc<dyn Store>,
    pub(crate) via: Option<Via>,
    state: Option<Arc<dyn Store>>,
    pub(crate) wanted: Wanted,
    pub(crate) mapping: Option<Arc<Mapping>>,
    pub(crate) options: Options,
    pub(crate) timeout: Duration,
}

impl Settings {
    pub(crate) fn new(common: &Common, flags: &Flags, registry: &Registry) -> Result<Self> {
        let file = common.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let Flags { ends, moved, carrier, allow_non_empty } = flags;
        let from = from(ends, &file)?;
        let to = to(ends, &file)?;
        let name = match given_name(common, &file) {
            Some(name) => FlowName::new(name)?,
            None => default_name(&from, &to)?,
        };
        let state = common.state.as_deref().or(file.run.state.as_deref());
        let state = state.map(|url| registry.open(&Endpoint::parse(url)?)).transpose()?;
        let via = carrier.via.as_deref().or(file.run.via.as_deref());
        let via = via.map(|url| open_via(&Endpoint::parse(url)?, registry)).transpose()?;
        let mut conversions: Conversions = file.convert;
        for word in &moved.conversions {
            let (kind, form) = word.split_once('=').ok_or_else(|| {
                Error::new(code::CONFIG_INVALID, format!("--convert {word} is not TYPE=FORM"))
                    .hint("for example --convert interval=string")
            })?;
            conversions.insert(kind.to_owned(), form.to_owned());
        }
        let mut maps = file.map;
        if let Some(path) = &moved.transform {
            maps.extend(read_toml::<Maps>(path)?.map);
        }
        let mapping = Mapping::compile(&maps)?.map(Arc::new);
        let mut source = open_source(&from, registry)?;
        if let Some(mapping) = &mapping {
            let transform: Arc<dyn Transform> = Arc::<Mapping>::clone(mapping);
            source = Arc::new(Transformed::new(source, transform, SystemClock::shared()));
        }
        let mut options = Options::default();
        options.chunk_rows = file.copy.chunk_rows.map_or(options.chunk_rows, NonZeroUsize::get);
        options.chunk_bytes = file.copy.chunk_bytes.map_or(options.chunk_bytes, NonZeroUsize::get);
        options.workers = file.copy.workers.unwrap_or(options.workers);
        options.batch_changes = file.copy.batch_changes.map_or(options.batch_changes, NonZeroUsize::get);
        options.held_bytes_max = file.limits.held_bytes_max.unwrap_or(options.held_bytes_max);
        Ok(Self {
            name,
            source,
            target: registry.open(&to)?,
            via,
            state,
            wanted: Wanted {
                tables: selection(tables(moved, &file.source))?,
                exclude: moved.excluded.iter().chain(&file.source.exclude).cloned().collect(),
                names: names(&maps, &moved.maps)?,
                conversions,
                allow_non_empty: *allow_non_empty || file.copy.allow_non_empty,
            },
            mapping,
            options,
            timeout: common.timeout,
        })
    }

    pub(crate) async fn state(&self) -> Result<Arc<dyn StateStore>> {
        self.state.as_ref().unwrap_or(&self.target).state().await
    }

    /// The flow of a plan.
    pub(crate) fn flow(&self, plan: &tidegate_flow::Plan) -> Flow {
        let target: Arc<dyn Store> = match &self.via {
            Some(via) => Arc::new(Carried::new(Arc::clone(&self.target), via.clone())),
            None => Arc::clone(&self.target),
        };
        let source = Arc::clone(&self.source);
        let flow = Flow::new(self.name.clone(), source, target, plan.routes(), self.wanted.clone());
        Flow { options: self.options.clone(), ..flow }
    }
}

/// The source and its tables alone, as they are before the mapping.
pub(crate) fn unmapped(
    common: &Common,
    flags: &Flags,
    registry: &Registry,
) -> Result<(Arc<dyn Store>, Selection)> {
    let file = common.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
    Ok((open_source(&from(&flags.ends, &file)?, registry)?, selection(tables(&flags.moved, &file.source))?))
}

/// A migration's name and its source, without a look at its target.
pub(crate) fn named_source(
    common: &Common,
    ends: &Ends,
    registry: &Registry,
) -> Result<(FlowName, Arc<dyn Store>)> {
    let file = common.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
    let from = from(ends, &file)?;
    let name = match given_name(common, &file) {
        Some(name) => FlowName::new(name)?,
        None => {
            let to = to(ends, &file).map_err(|_| {
                Error::new(code::CONFIG_INVALID, "which migration is not said")
                    .hint("give --name, or the --to that its name came from")
            })?;
            default_name(&from, &to)?
        }
    };
    Ok((name, open_source(&from, registry)?))
}

fn open_source(from: &Endpoint, registry: &Registry) -> Result<Arc<dyn Store>> {
    let source = registry.open(from)?;
    Ok(match registry.turns_with() {
        Some(transform) => Arc::new(Transformed::new(source, transform, SystemClock::shared())),
        None => source,
    })
}

fn from(ends: &Ends, file: &File) -> Result<Endpoint> {
    end(ends.from.as_deref().or(file.source.url.as_deref()), "--from", "[source] url")
}

fn to(ends: &Ends, file: &File) -> Result<Endpoint> {
    end(ends.to.as_deref().or(file.target.url.as_deref()), "--to", "[target] url")
}

fn given_name<'a>(common: &'a Common, file: &'a File) -> Option<&'a str> {
    common.name.as_deref().or(file.run.name.as_deref())
}

/// The tables that the flags name, or else the file.
fn tables<'a>(moved: &'a Moved, source: &'a End) -> &'a [String] {
    if moved.tables.is_empty() { &source.tables } else { &moved.tables }
}

fn open_via(url: &Endpoint, registry: &Registry) -> Result<Via> {
    Ok(Via {
        broker: registry.open_broker(url)?,
        codecs: registry.codecs(),
        clock: SystemClock::shared(),
        ids: Arc::new(SystemIds),
    })
}

fn end(url: Option<&str>, flag: &str, key: &str) -> Result<Endpoint> {
    let url = url.ok_or_else(|| {
        Error::new(code::CONFIG_INVALID, format!("{flag} is missing"))
            .hint(format!("give {flag} URL, or {key} in the file of --config"))
    })?;
    Endpoint::parse(url)
}

/// `shop_to_orders`, of what the databases are called. Where not all of that fits a name, a hash tells it from another
/// one of which the same is left.
fn default_name(from: &Endpoint, to: &Endpoint) -> Result<FlowName> {
    let (from, to) = (from.database(), to.database());
    let plain = |name: &str, most: usize| {
        let name = name.to_lowercase().replace('-', "_");
        name.chars().filter(|c| c.is_alphanumeric() || *c == '_').take(most).collect::<String>()
    };
    let name = format!("{}_to_{}", plain(from, 18), plain(to, 18));
    let whole = format!("{from}_to_{to}");
    FlowName::new(if name == whole {
        name
    } else {
        let hash = xxh3_64(whole.as_bytes());
        format!("{}_to_{}_{:08x}", plain(from, 13), plain(to, 13), hash >> 32)
    })
    .map_err(|_| {
        Error::new(code::CONFIG_INVALID, "no name can be made of the databases' names").hint("give --name")
    })
}

/// What tables are called in the target; flags override the file.
fn names(maps: &[Map], words: &[String]) -> Result<BTreeMap<String, TableName>> {
    let in_file = maps.iter().filter_map(|map| Some((map.table.clone(), map.to.as_deref()?)));
    let in_file = in_file.map(|(table, to)| Ok((table, table_name(to)?)));
    let mut names = in_file.collect::<Result<BTreeMap<_, _>>>()?;
    for word in words {
        let (table, name) = word.split_once('=').ok_or_else(|| {
            Error::new(code::CONFIG_INVALID, format!("--map {word} is not TABLE=NAME"))
                .hint("for example --map public.orders=shop_orders")
        })?;
        names.insert(table.to_owned(), table_name(name)?);
    }
    Ok(names)
}

fn selection(tables: &[String]) -> Result<Selection> {
    if tables.is_empty() {
        return Ok(Selection::All);
    }
    let mut names: Vec<TableName> = Vec::new();
    for name in tables {
        let name = table_name(name)?;
        // Said twice it is meant once.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(Selection::These(names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::count;

    /// Each key, as it is written behind the names of the tables that it is in.
    fn keys(schema: &serde_json::Value, of: &serde_json::Value, before: &str, keys: &mut Vec<String>) {
        for (name, property) in of["properties"].as_object().into_iter().flatten() {
            let named = format!("{before}{name}");
            let inner =
                property["$ref"].as_str().and_then(|path| schema.pointer(path.trim_start_matches('#')));
            match inner.filter(|inner| inner["properties"].is_object()) {
                Some(inner) => self::keys(schema, inner, &format!("{named}."), keys),
                None => keys.push(named),
            }
        }
    }

    #[test]
    fn the_books_page_has_every_key_and_what_holds_without_it() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/configuration.md");
        let page = std::fs::read_to_string(page).unwrap();
        let schema = serde_json::to_value(schemars::schema_for!(File)).unwrap();
        let mut found = Vec::new();
        keys(&schema, &schema, "", &mut found);
        assert!(found.len() > 12, "{found:?}");
        // Tables are a source's alone.
        for key in found.iter().filter(|key| !["target.tables", "target.exclude"].contains(&key.as_str())) {
            assert!(page.contains(&format!("| `{key}")), "{key} is not on the page");
        }
        let Options { chunk_rows, chunk_bytes, workers, batch_changes, held_bytes_max, .. } =
            Options::default();
        for (key, value) in [
            ("copy.workers", workers.to_string()),
            ("copy.chunk_rows", count(chunk_rows as u64)),
            ("copy.chunk_bytes", format!("{} MiB", chunk_bytes >> 20)),
            ("copy.batch_changes", count(batch_changes as u64)),
            ("limits.held_bytes_max", format!("{} GiB", held_bytes_max >> 30)),
        ] {
            let line = page.lines().find(|line| line.starts_with(&format!("| `{key}`"))).unwrap();
            assert!(line.ends_with(&format!("| {value} |")), "{line} does not end with {value}");
        }
    }

    fn name(from: &str, to: &str) -> String {
        let endpoint = |url| Endpoint::parse(url).unwrap();
        default_name(&endpoint(from), &endpoint(to)).unwrap().to_string()
    }

    /// Found by reading: names that were cut were the same.
    #[test]
    fn default_names_differ_as_what_they_come_from_does() {
        for (from, to, made) in [
            ("sqlite:/var/shop.db", "sqlite:new.db", "shop_to_new"),
            ("postgres://h/orders_1", "mongodb://h/archive?replicaSet=r", "orders_1_to_archive"),
            (
                "postgres://h/a23456789012345678",
                "postgres://h/b23456789012345678",
                "a23456789012345678_to_b23456789012345678",
            ),
        ] {
            assert_eq!(name(from, to), made);
        }
        let changed = [
            ("postgres://h/my-shop", "postgres://h/new"),
            ("postgres://h/my_shop", "postgres://h/New"),
            ("postgres://h/My-Shop", "postgres://h/new"),
            ("postgres://h/myshop.", "postgres://h/new"),
            ("postgres://h/customers_of_the_north_2024", "postgres://h/archive_of_customers_1"),
            ("postgres://h/customers_of_the_north_2025", "postgres://h/archive_of_customers_1"),
            ("postgres://h/customers_of_the_north_2024", "postgres://h/archive_of_customers_2"),
        ];
        let names: std::collections::BTreeSet<_> = changed.iter().map(|(from, to)| name(from, to)).collect();
        assert_eq!(names.len(), changed.len(), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= 40), "{names:?}");
        assert!(
            default_name(&Endpoint::parse("memory:").unwrap(), &Endpoint::parse("sqlite:b.db").unwrap())
                .is_err()
        );
    }
}
