//! Whoever else does the work.

pub mod client;
pub mod debezium;
pub mod documents;
mod kept;
pub mod reladiff;
pub mod watermill;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, TryStreamExt as _};
use tokio::process::Command;
use tokio_postgres::Client;

use crate::Result;
use crate::ground::connect;

async fn finish(command: &mut Command) -> Result<()> {
    let output = command.kill_on_drop(true).stdin(Stdio::null()).output().await?;
    succeeded(command.as_std(), &output)
}

/// For what is fetched before anything is measured.
fn finish_blocking(command: &mut std::process::Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    succeeded(command, &output)
}

fn succeeded(command: &std::process::Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    // What went wrong stands in the report, where no path of a machine belongs.
    let program = Path::new(command.get_program());
    let name = Path::new(program.file_name().unwrap_or(program.as_os_str())).display();
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    let end: Vec<&str> = text.lines().rev().take(5).collect();
    Err(format!("{name}: {}: {}", output.status, end.into_iter().rev().collect::<Vec<_>>().join(" / "))
        .into())
}

/// Reads the table with nothing but the driver; gives the bytes.
pub async fn bare_copy_out(url: &str) -> Result<u64> {
    let client = connect(url).await?;
    let stream = client.copy_out("COPY bench TO STDOUT (FORMAT binary)").await?;
    let mut stream = std::pin::pin!(stream);
    let mut bytes = 0;
    while let Some(piece) = stream.try_next().await? {
        bytes += piece.len() as u64;
    }
    Ok(bytes)
}

/// `psql` copies the table to nowhere.
pub async fn psql_copy_out(url: &str) -> Result<()> {
    let psql = tidegate_services::postgres::program("psql")?;
    let sql = "COPY bench TO STDOUT (FORMAT binary)";
    let mut command = Command::new(psql);
    command.args(["--no-psqlrc", "--quiet", "--command", sql, url]).stdout(Stdio::null()).kill_on_drop(true);
    let status = command.status().await?;
    if status.success() { Ok(()) } else { Err(format!("psql: {status}").into()) }
}

/// `psql` to `psql`, through a pipe of the shell.
pub async fn psql_pipe(from: &str, to: &str) -> Result<()> {
    let psql = tidegate_services::postgres::program("psql")?.display().to_string();
    let script = r#""$0" -Xqc "COPY bench TO STDOUT (FORMAT binary)" "$1" | "$0" -Xqc "COPY bench FROM STDIN (FORMAT binary)" "$2""#;
    finish(Command::new("bash").args(["-o", "pipefail", "-c", script, &psql, from, to])).await
}

/// `pgcopydb` clones the database.
pub async fn pgcopydb(from: &str, to: &str, folder: &Path) -> Result<()> {
    let program = tidegate_services::debian_program("pgcopydb", "pgcopydb")?;
    let mut command = Command::new(program);
    let bin = tidegate_services::postgres::program("psql")?;
    let path = [bin.parent().map(PathBuf::from), Some("/usr/bin".into()), Some("/bin".into())];
    command.env("PATH", std::env::join_paths(path.into_iter().flatten())?);
    command.args([
        "clone",
        "--not-consistent",
        "--drop-if-exists",
        "--source",
        from,
        "--target",
        to,
        "--dir",
    ]);
    finish(command.arg(folder)).await
}

/// `pg_recvlogical` reads a slot to its end, to nowhere.
pub async fn recvlogical(url: &str, slot: &str, end: &str) -> Result<()> {
    let program = tidegate_services::postgres::program("pg_recvlogical")?;
    let mut command = Command::new(program);
    command.args(["--dbname", url, "--slot", slot, "--start", "--no-loop"]);
    command.args(["--file", "/dev/null", "--endpos", end, "--fsync-interval", "0"]);
    command.args(["--option", "proto_version=1", "--option", "publication_names=peers"]);
    finish(&mut command).await
}

/// PostgreSQL's own subscription applies a slot; returns when the last row of the backlog is there.
pub async fn subscription(from: &str, to: &str, slot: &str) -> Result<()> {
    let client = connect(to).await?;
    let sql = format!(
        "CREATE SUBSCRIPTION {slot} CONNECTION '{from}' PUBLICATION peers
        WITH (create_slot = false, slot_name = '{slot}', copy_data = false, enabled = true)"
    );
    client.batch_execute(&sql).await?;
    while client.query_opt("SELECT FROM bench WHERE id = 0", &[]).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Ends a subscription; its slot is the caller's.
pub async fn end_subscription(to: &str, slot: &str) -> Result<()> {
    let client = connect(to).await?;
    for sql in ["DISABLE", "SET (slot_name = NONE)"] {
        client.batch_execute(&format!("ALTER SUBSCRIPTION {slot} {sql}")).await?;
    }
    client.batch_execute(&format!("DROP SUBSCRIPTION {slot}")).await?;
    Ok(())
}

/// What a query gives, as a binary copy.
pub async fn copied(url: &str, query: &str) -> Result<Bytes> {
    let client = connect(url).await?;
    let stream = client.copy_out(&format!("COPY ({query}) TO STDOUT (FORMAT binary)")).await?;
    let all: BytesMut = stream
        .try_fold(BytesMut::new(), async |mut all, piece| {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await?;
    Ok(all.freeze())
}

/// Applies batches of rows with nothing but the driver.
pub async fn bare_apply(url: &str, batches: &[Bytes]) -> Result<()> {
    let stage = Stage::open(url).await?;
    for batch in batches {
        stage.apply(batch.clone()).await?;
    }
    Ok(())
}

/// Applies a batch with a copy to a stage, and one statement that merges it.
#[derive(Debug)]
pub struct Stage(Client);

impl Stage {
    /// A stage of the table.
    pub async fn open(url: &str) -> Result<Self> {
        let client = connect(url).await?;
        client.batch_execute("CREATE TEMP TABLE stage (LIKE bench) ON COMMIT DELETE ROWS").await?;
        Ok(Self(client))
    }

    /// Applies a binary copy.
    pub async fn apply(&self, mut batch: Bytes) -> Result<()> {
        let Self(client) = self;
        client.batch_execute("BEGIN").await?;
        let sink = client.copy_in::<_, Bytes>("COPY stage FROM STDIN (FORMAT binary)").await?;
        let mut sink = std::pin::pin!(sink);
        while !batch.is_empty() {
            sink.feed(batch.split_to(batch.len().min(1 << 18))).await?;
        }
        sink.finish().await?;
        let sql = "INSERT INTO bench SELECT * FROM stage ON CONFLICT (id) DO UPDATE
            SET s = excluded.s, n = excluded.n, ts = excluded.ts, j = excluded.j, upd = excluded.upd; COMMIT";
        Ok(client.batch_execute(sql).await?)
    }
}
