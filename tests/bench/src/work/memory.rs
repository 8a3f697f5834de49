//! `memory`: the most that the program has in memory, from its start to its end.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tidegate_core::FlowName;
use tokio::process::{Child, Command};

use crate::ground::{Ground, connect, count};
use crate::report::{Row, Samples};
use crate::work::equal;
use crate::{Result, ours};

/// What it may have, however much there is to be moved.
const LIMIT_MIB: f64 = 128.0;
/// Between two looks: the kernel keeps the most, so that only the last look has to be near the end.
const LOOK: Duration = Duration::from_millis(5);
/// For a whole flow.
const LIMIT: Duration = Duration::from_secs(1_800);
/// The exit status of a program that was told to stop.
const STOPPED: i32 = 7;

/// Two sizes of a table, and one transaction that is larger than what may be in memory.
pub async fn run(ground: &Ground) -> Result<Vec<Row>> {
    let program = program()?;
    let rows = ground.size.rows;
    let (few, many, burst) = (rows / 2, rows * 5, rows);
    let (mut of_few, mut of_many, mut of_burst) =
        (Samples::default(), Samples::default(), Samples::default());
    let small = ground.fill_with("memory_few", few).await?;
    let large = ground.fill_with("memory_many", many).await?;
    let empty = ground.fill_with("memory_burst", 0).await?;
    // One run more shows no other memory, so none is thrown away.
    for run in 0..ground.size.rounds {
        // The servers' logs of the runs before are let go of: they are larger than the tables.
        ground.settle().await?;
        of_few.push_if(true, crawl(ground, &program, &small, &format!("few{run}"), few).await?);
        of_many.push_if(true, crawl(ground, &program, &large, &format!("many{run}"), many).await?);
        of_burst.push_if(true, transaction(ground, &program, &empty, &format!("burst{run}"), burst).await?);
    }
    let limit = Samples::of(LIMIT_MIB);
    let row = |work: &str, own: &Samples| Row::lower(work, "MiB", own, "its limit", &limit, 1.0);
    Ok(vec![
        row(&format!("memory, crawl of {few} rows"), &of_few),
        row(&format!("memory, crawl of {many} rows"), &of_many),
        row(&format!("memory, one transaction of {burst} rows"), &of_burst),
    ])
}

/// The program, beside this one.
fn program() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("tidegate");
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not there: build tidegate-migrations in the same way", path.display()).into())
    }
}

/// Its words go to the file, for when it fails.
fn start(program: &Path, from: &str, to: &str, name: &str, more: &[&str], log: &File) -> Result<Child> {
    let mut command = Command::new(program);
    command.stderr(log.try_clone()?);
    command.args(["migrate", "run", "--quiet", "--from", from, "--to", to, "--name", name]).args(more);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?)
}

/// Until both sides are equal, in MiB.
async fn crawl(ground: &Ground, program: &Path, from: &str, name: &str, rows: u64) -> Result<f64> {
    let to = ground.target.create_database(name).await?;
    let log = tempfile::tempfile()?;
    let mut child = start(program, from, &to, name, &["--until", "caught-up"], &log)?;
    let peak = tokio::time::timeout(LIMIT, peak_until_end(&mut child)).await??;
    if !child.wait().await?.success() {
        return Err(failed(log));
    }
    equal(count(&to).await?, rows)?;
    clean(ground, from, name).await?;
    Ok(peak)
}

/// The transaction is written while the program runs, so that it comes from the log.
async fn transaction(ground: &Ground, program: &Path, from: &str, name: &str, rows: u64) -> Result<f64> {
    connect(from).await?.batch_execute("TRUNCATE bench").await?;
    let to = ground.target.create_database(name).await?;
    let log = tempfile::tempfile()?;
    let mut child = start(program, from, &to, name, &[], &log)?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).ok_or("no process")?;
    let writing = async {
        // A row that is written alone shows that changes arrive.
        ground.insert(from, 1, 1).await?;
        wait_for(&to, 1).await?;
        ground.insert(from, 2, rows).await?;
        wait_for(&to, rows).await?;
        kill_process(pid, Signal::INT)?;
        std::future::pending::<Result<()>>().await
    };
    let peak = tokio::time::timeout(LIMIT, async {
        tokio::select! {
            biased;
            // It ends when it is told to, or when it fails, and then nothing is to be waited for.
            peak = peak_until_end(&mut child) => peak,
            Err(error) = writing => Err(error),
        }
    });
    let peak = peak.await??;
    if child.wait().await?.code() != Some(STOPPED) {
        return Err(failed(log));
    }
    equal(count(&to).await?, rows)?;
    clean(ground, from, name).await?;
    Ok(peak)
}

fn failed(mut log: File) -> crate::Error {
    let mut text = String::new();
    let read = log.rewind().and_then(|()| log.read_to_string(&mut text));
    format!("the program failed: {} {}", text.trim(), read.err().map_or_else(String::new, |e| e.to_string()))
        .into()
}

/// Waits for the row with this key, and for its table.
async fn wait_for(url: &str, key: u64) -> Result<()> {
    let client = connect(url).await?;
    let sql = "SELECT to_regclass('bench') IS NOT NULL";
    while !client.query_one(sql, &[]).await?.get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let key = i64::try_from(key)?;
    while client.query_opt("SELECT FROM bench WHERE id = $1", &[&key]).await?.is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The high-water mark of a process, looked at until it has ended.
async fn peak_until_end(child: &mut Child) -> Result<f64> {
    let status = format!("/proc/{}/status", child.id().ok_or("no process")?);
    let mut peak = None;
    while child.try_wait()?.is_none() {
        let text = tokio::fs::read_to_string(&status).await.unwrap_or_default();
        peak = high_water(&text).or(peak);
        tokio::time::sleep(LOOK).await;
    }
    Ok(peak.ok_or("the program ended before it was looked at")?)
}

/// In MiB; a process that has ended but was not waited for has none.
fn high_water(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1_024.0)
}

async fn clean(ground: &Ground, from: &str, name: &str) -> Result<()> {
    ours::open(from)?.catalog().await?.clean(&FlowName::new(name)?).await?;
    ground.target.sql(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read_in_mib() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
        assert_eq!(high_water("Name:\tx\nState:\tZ (zombie)\n"), None);
    }
}
