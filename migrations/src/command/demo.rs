//! `tidegate demo`: the main job in half a minute, with nothing to install.
//!
//! An order service writes to one database all the time. A migration, in a process of its own, moves its tables to
//! another one; it is killed on purpose and started again. Everything that is said is read from the two databases.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::{Clock, Error, Result, Scope, SystemClock};
use tidegate_flow::run::{STATUS, WISHES, Wishes, change, read};
use tidegate_flow::{Status, TableState};
use tokio::process::{Child, Command};

use super::verify;
use crate::arguments::{Common, Ends};
use crate::registry::Registry;
use crate::render::{count, tell};
use crate::settings::Settings;

/// Orders that are there before the migration begins.
const ORDERS: i64 = 60_000;
/// Customers that are there before the migration begins.
const CUSTOMERS: i64 = 5_000;
/// Pause between two transactions of the order service.
const SERVICE_PAUSE: Duration = Duration::from_millis(4);

pub(super) async fn demo(seconds: u64, dir: Option<&Path>, json: bool) -> Result<ExitCode> {
    let temporary = if dir.is_none() { Some(tempfile::tempdir().map_err(io)?) } else { None };
    let folder = match (dir, &temporary) {
        (Some(dir), _) => dir.to_owned(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => PathBuf::new(),
    };
    std::fs::create_dir_all(&folder).map_err(|error| {
        Error::new(code::CONFIG_INVALID, format!("the folder {} cannot be made", folder.display()))
            .because(error)
    })?;
    let (shop, new) = (folder.join("shop.db"), folder.join("new.db"));
    for file in [&shop, &new] {
        if file.exists() {
            return Err(Error::new(code::TARGET_NOT_EMPTY, format!("{} is there already", file.display()))
                .hint("give --dir a folder without the demo's databases"));
        }
    }
    let ends = Ends {
        from: Some(format!("sqlite:{}", shop.display())),
        to: Some(format!("sqlite:{}", new.display())),
    };
    let common = Common { timeout: Duration::from_secs(30), ..Common::default() };
    let clock = SystemClock::shared();

    say(
        &*clock,
        &format!(
            "an order service with {} orders and {} customers, in {}",
            count(ORDERS as u64),
            count(CUSTOMERS as u64),
            shop.display()
        ),
    );
    fill(&shop).await?;
    let service = Arc::new(Service::default());
    let mut scope = Scope::new();
    scope.spawn(Arc::clone(&service).write(shop.clone(), Arc::clone(&clock)));
    say(&*clock, "it keeps writing from now on, and nobody stops it");

    let settings = Settings::new(&common, &(&ends).into(), &Registry::standard())?;
    let outcome = migrate(&settings, &ends, seconds, &service, &clock).await;
    service.stop.store(true, Ordering::Relaxed);
    scope.join().await?;
    let seen = outcome?;

    // The service has ended: what it wrote last arrives, and then both sides are compared at rest.
    let ended = start(&ends, &["--until", "caught-up"])?.wait().await.map_err(io)?;
    if !ended.success() {
        return Err(Error::new(code::INTERNAL, format!("the last run ended with {ended}")));
    }
    let report = verify::compare(&settings, None, &Arc::default()).await?;
    let state = settings.state().await?;
    let (status, _) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
    say(&*clock, &format!("the service has ended; compared at rest: {}", outcome_of(&report)));
    if !report.equal {
        return Err(Error::new(code::DIFFERENCE_FOUND, "the two databases differ"));
    }
    let transactions = service.transactions.load(Ordering::Relaxed);
    let (crawled, overtaken) = (crawled(&status), status.tables.iter().map(|t| t.rows_overtaken).sum());
    if json {
        let document = serde_json::json!({
            "transactions": transactions, "rows_crawled": crawled, "rows_overtaken": overtaken,
            "changes_applied": status.changes_applied, "rows_at_kill": seen.rows_at_kill,
            "compared": report.compared, "equal": report.equal,
        });
        crate::render::say!("{document}");
        return Ok(ExitCode::SUCCESS);
    }
    tell(format_args!(""));
    tell(format_args!("what was seen:"));
    tell(format_args!("  {} transactions of the service while it was moved", count(transactions)));
    tell(format_args!(
        "  {} rows crawled, of which {} had been overtaken by a newer change",
        count(crawled),
        count(overtaken)
    ));
    tell(format_args!("  {} changes captured and applied", count(status.changes_applied)));
    tell(format_args!(
        "  killed with {} rows in the target; the next run went on from there",
        count(seen.rows_at_kill)
    ));
    tell(format_args!("  {} rows equal, while the service wrote and at rest", count(report.compared)));
    tell(format_args!(""));
    tell(format_args!("try next:"));
    tell(format_args!("  tidegate plan --from sqlite:YOUR.db --to sqlite:new.db"));
    tell(format_args!("  tidegate migrate run --from sqlite:YOUR.db --to sqlite:new.db"));
    Ok(ExitCode::SUCCESS)
}

/// What the demo saw on its way.
struct Seen {
    rows_at_kill: u64,
}

async fn migrate(
    settings: &Settings,
    ends: &Ends,
    seconds: u64,
    service: &Service,
    clock: &Arc<dyn Clock>,
) -> Result<Seen> {
    // The crawl is slowed down, so that there is something to see.
    let state = settings.state().await?;
    let rate = (ORDERS + CUSTOMERS).cast_unsigned() * 2 / seconds.max(1);
    change(state.as_ref(), &settings.name, WISHES, |wishes: &mut Wishes| wishes.max_rate.rows = Some(rate))
        .await?;

    let mut child = start(ends, &[])?;
    say(&**clock, "tidegate migrate run: a process of its own crawls and captures at once");
    let half = (ORDERS / 3).cast_unsigned();
    let status = watch(settings, clock, &mut child, |status| crawled(status) >= half).await?;
    child.kill().await.map_err(io)?;
    let rows_at_kill = crawled(&status);
    say(
        &**clock,
        &format!(
            "killed it with -9, {} rows into the crawl; the service has not noticed",
            count(rows_at_kill)
        ),
    );
    clock.sleep(Duration::from_millis(700)).await;

    let mut child = start(ends, &[])?;
    say(
        &**clock,
        "started it again: it waits some seconds for the killed one's lease, and goes on where that was",
    );
    let status =
        watch(settings, clock, &mut child, |status| crawled(status) >= rows_at_kill && status.is_crawled())
            .await?;
    say(
        &**clock,
        &format!(
            "all {} rows are crawled, {} changes applied meanwhile; lag {:.2} s",
            count(crawled(&status)),
            count(status.changes_applied),
            status.lag_seconds()
        ),
    );

    let before = service.transactions.load(Ordering::Relaxed);
    let report = verify::compare(settings, None, &Arc::default()).await?;
    let meanwhile = service.transactions.load(Ordering::Relaxed) - before;
    say(
        &**clock,
        &format!(
            "compared while the service wrote ({} transactions meanwhile): {}",
            count(meanwhile),
            outcome_of(&report)
        ),
    );

    // The gentle way to stop: what is in flight is finished.
    if let Some(pid) = child.id() {
        let told = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await.map_err(io)?;
        if told.success() {
            let ended = child.wait().await.map_err(io)?;
            say(&**clock, &format!("told it to stop: it finished what was in flight ({ended})"));
        }
    }
    if report.missing + report.extra + report.different > 0 {
        return Err(Error::new(code::DIFFERENCE_FOUND, "the two databases differ"));
    }
    Ok(Seen { rows_at_kill })
}

fn crawled(status: &Status) -> u64 {
    status.tables.iter().map(|table| table.rows_crawled).sum()
}

fn outcome_of(report: &tidegate_flow::verify::Report) -> String {
    if report.equal {
        format!("{} rows equal", count(report.compared))
    } else {
        format!(
            "{} missing, {} extra, {} different, {} still changing",
            report.missing, report.extra, report.different, report.unsettled
        )
    }
}

fn say(clock: &dyn Clock, what: &str) {
    tell(format_args!("{:5.1} s  {what}", clock.elapsed().as_secs_f64()));
}

/// Starts this program again as the migration.
fn start(ends: &Ends, more: &[&str]) -> Result<Child> {
    let program = std::env::current_exe().map_err(io)?;
    Command::new(program)
        .args(["--quiet", "migrate", "run", "--from"])
        .arg(ends.from.as_deref().unwrap_or_default())
        .arg("--to")
        .arg(ends.to.as_deref().unwrap_or_default())
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(io)
}

/// Waits until the status says so, and shows it now and then.
async fn watch(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    child: &mut Child,
    enough: impl Fn(&Status) -> bool,
) -> Result<Status> {
    let state = settings.state().await?;
    let deadline = clock.elapsed() + Duration::from_secs(120);
    let mut said = clock.elapsed();
    while clock.elapsed() < deadline {
        if let Some(ended) = child.try_wait().map_err(io)? {
            return Err(Error::new(code::INTERNAL, format!("the migration ended by itself: {ended}")));
        }
        let (status, _) = read::<Status>(state.as_ref(), &settings.name, STATUS).await?;
        let failed = status.tables.iter().find(|table| table.state == TableState::Failed);
        if let Some(table) = failed {
            return Err(Error::new(
                code::INTERNAL,
                format!("table {} stopped: {:?}", table.source, table.error),
            ));
        }
        if enough(&status) {
            return Ok(status);
        }
        if clock.elapsed().saturating_sub(said) > Duration::from_secs(1) {
            said = clock.elapsed();
            say(
                &**clock,
                &format!(
                    "  {} of ~{} rows crawled, {} changes applied, lag {:.2} s",
                    count(crawled(&status)),
                    count((ORDERS + CUSTOMERS).cast_unsigned()),
                    count(status.changes_applied),
                    status.lag_seconds()
                ),
            );
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
    Err(Error::new(code::TIMED_OUT, "the migration did not get so far in time"))
}

/// The application that is migrated: it knows nothing of it.
#[derive(Debug, Default)]
struct Service {
    stop: AtomicBool,
    transactions: AtomicU64,
}

impl Service {
    async fn write(self: Arc<Self>, file: PathBuf, clock: Arc<dyn Clock>) -> Result<()> {
        let mut connection = connect(&file).await?;
        let mut random = fastrand::Rng::with_seed(7);
        let mut next = ORDERS;
        while !self.stop.load(Ordering::Relaxed) {
            let mut transaction = connection.begin().await.map_err(sql)?;
            // Half of the writes go to a few hot orders.
            let order = if random.bool() { random.i64(1..200) } else { random.i64(1..=next) };
            match random.u8(0..10) {
                0..=3 => {
                    next += 1;
                    sqlx::query("INSERT INTO orders VALUES (?, ?, 'new', ?, ?)")
                        .bind(next)
                        .bind(random.i64(1..=CUSTOMERS))
                        .bind(random.i64(100..100_000))
                        .bind(format!("order {next}"))
                        .execute(&mut *transaction)
                        .await
                        .map_err(sql)?;
                }
                4..=7 => {
                    sqlx::query("UPDATE orders SET state = ?, total_cents = total_cents + 1 WHERE id = ?")
                        .bind(["paid", "packed", "sent"][random.usize(0..3)])
                        .bind(order)
                        .execute(&mut *transaction)
                        .await
                        .map_err(sql)?;
                }
                8 => {
                    sqlx::query("DELETE FROM orders WHERE id = ?")
                        .bind(order)
                        .execute(&mut *transaction)
                        .await
                        .map_err(sql)?;
                }
                _ => {
                    sqlx::query("UPDATE customers SET name = name || '.' WHERE id = ?")
                        .bind(random.i64(1..=CUSTOMERS))
                        .execute(&mut *transaction)
                        .await
                        .map_err(sql)?;
                }
            }
            transaction.commit().await.map_err(sql)?;
            self.transactions.fetch_add(1, Ordering::Relaxed);
            clock.sleep(SERVICE_PAUSE).await;
        }
        connection.close().await.map_err(sql)
    }
}

async fn connect(file: &Path) -> Result<SqliteConnection> {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(20))
        .connect()
        .await
        .map_err(sql)
}

async fn fill(file: &Path) -> Result<()> {
    let mut connection = connect(file).await?;
    let tables = "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL, state TEXT NOT NULL,
                              total_cents INTEGER NOT NULL, note TEXT);";
    sqlx::raw_sql(tables).execute(&mut connection).await.map_err(sql)?;
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)";
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "{many} INSERT INTO customers SELECT i, 'customer ' || i FROM n"
    )))
    .bind(CUSTOMERS)
    .execute(&mut connection)
    .await
    .map_err(sql)?;
    let orders = "INSERT INTO orders SELECT i, 1 + i % 5000, 'old', i * 7 % 90000, 'order ' || i FROM n";
    sqlx::query(sqlx::AssertSqlSafe(format!("{many} {orders}")))
        .bind(ORDERS)
        .execute(&mut connection)
        .await
        .map_err(sql)?;
    connection.close().await.map_err(sql)
}

fn io(e: std::io::Error) -> Error {
    Error::new(code::INTERNAL, "the demo's files or processes cannot be used").because(e)
}

fn sql(e: sqlx::Error) -> Error {
    Error::new(code::STORE_FAILED, "the demo's order service was refused").because(e)
}
