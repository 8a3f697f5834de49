//! The Debezium engine: it reads a slot and hands records to a function that drops them.
//!
//! The program is `peers/debezium/Peer.java`; it says on its standard output how far it is.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr as _;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_postgres::config::Host;

use crate::Result;
use crate::peers::{finish_blocking, kept};

/// What is resolved, and what the report says was measured.
pub const VERSION: &str = "3.6.3.Final";

/// For the start of the virtual machine, and for that of the engine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// For all records of a run.
const RUN_LIMIT: Duration = Duration::from_secs(900);

/// The engine, ready to be started.
#[derive(Clone, Debug)]
pub struct Debezium {
    java: PathBuf,
    jars: PathBuf,
}

/// An engine that reads.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/debezium").join(name)
}

impl Debezium {
    /// Finds Java and the engine, or has them fetched by Debian's and Maven's own clients.
    pub fn find(may_fetch: bool) -> Result<Self> {
        let jars = kept::folder(&format!("debezium-{VERSION}"), may_fetch, |folder| {
            let maven = tidegate_services::debian_program("mvn", "maven")?;
            let mut command = std::process::Command::new(maven);
            command.args(["--quiet", "--batch-mode", "--file"]).arg(source("pom.xml"));
            command.arg("dependency:copy-dependencies").arg("-DincludeScope=runtime");
            command.arg(format!("-Ddebezium.version={VERSION}"));
            command.arg(format!("-DoutputDirectory={}", folder.display()));
            finish_blocking(&mut command)
        })?;
        let java = tidegate_services::debian_program("java", "default-jdk-headless")?;
        Ok(Self { java, jars })
    }

    /// The version of Java.
    pub async fn java_version(&self) -> Result<String> {
        let output = Command::new(&self.java).arg("-version").output().await?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(text.split('"').nth(1).unwrap_or("unknown").to_owned())
    }

    /// Starts a virtual machine, and returns when it tells the engine to read a slot. With a column, it is where a row
    /// says when it was written, in microseconds since 1970.
    pub async fn start(
        &self,
        url: &str,
        slot: &str,
        records: u64,
        written_at: Option<&str>,
    ) -> Result<Running> {
        let config = tokio_postgres::Config::from_str(url)?;
        let Some(Host::Tcp(host)) = config.get_hosts().first() else { return Err("no host".into()) };
        let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
        let mut command = Command::new(&self.java);
        command.arg("-classpath").arg(self.jars.join("*")).arg(source("Peer.java"));
        command.args([host, &port, config.get_dbname().unwrap_or_default()]);
        command.args([config.get_user().unwrap_or_default(), slot, "peers", &records.to_string()]);
        command.arg(written_at.unwrap_or("-"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("the peer has no output")?;
        let mut running = Running { child, lines: BufReader::new(output).lines() };
        tokio::time::timeout(START_LIMIT, running.wait_for("begun")).await??;
        Ok(running)
    }
}

impl Running {
    /// Waits until the connector runs.
    pub async fn connected(&mut self) -> Result<()> {
        tokio::time::timeout(START_LIMIT, self.wait_for("started")).await??;
        Ok(())
    }

    /// Waits for the last record, and gives how old each was in microseconds, if that was asked for.
    pub async fn finish(mut self, records: u64) -> Result<Vec<i64>> {
        let (count, ages) = tokio::time::timeout(RUN_LIMIT, self.wait_for("done")).await??;
        self.child.kill().await?;
        if count.parse() != Ok(records) {
            return Err(format!("{count} records came of {records}").into());
        }
        Ok(ages)
    }

    /// Reads until a line that begins with this word, and gives the rest of it, with the samples that came before.
    async fn wait_for(&mut self, word: &str) -> Result<(String, Vec<i64>)> {
        let mut samples = Vec::new();
        while let Some(line) = self.lines.next_line().await? {
            let (found, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match found {
                "samples" => {
                    samples = rest.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?
                }
                "ended" => return Err(format!("the Debezium engine ended: {rest}").into()),
                _ if found == word => return Ok((rest.to_owned(), samples)),
                _ => {}
            }
        }
        Err("the Debezium engine ended without a word".into())
    }
}
