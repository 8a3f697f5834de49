//! reladiff compares two tables by checksums that the servers compute.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::Result;
use crate::peers::{finish_blocking, kept};

/// What is installed, and what the report says was measured.
pub const VERSION: &str = "0.6.0";

/// The program, ready to be run.
#[derive(Clone, Debug)]
pub struct Reladiff {
    python: PathBuf,
}

impl Reladiff {
    /// Finds it, or has it installed by pip in an environment of its own.
    pub fn find(may_fetch: bool) -> Result<Self> {
        let folder = kept::folder(&format!("reladiff-{VERSION}"), may_fetch, |folder| {
            let python = tidegate_services::debian_program("python3", "python3-venv")?;
            finish_blocking(std::process::Command::new(python).args(["-m", "venv"]).arg(folder))?;
            let mut pip = std::process::Command::new(folder.join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            finish_blocking(pip.arg(format!("reladiff[postgresql]=={VERSION}")))
        })?;
        Ok(Self { python: folder.join("bin/python") })
    }

    /// Compares a table with its settings as they come: the key, and these columns. Gives the keys of rows that it calls
    /// different.
    pub async fn compare(
        &self,
        from: &str,
        to: &str,
        table: &str,
        columns: &[&str],
    ) -> Result<BTreeSet<String>> {
        let [from, to] = [from, to].map(|url| url.replacen("postgres://", "postgresql://", 1));
        let mut command = Command::new(&self.python);
        command.args(["-m", "reladiff", &from, table, &to, table, "--json"]);
        command.args(columns.iter().flat_map(|column| ["--columns", column]));
        // Lines are broken to the width of the terminal, also within a value.
        command.env("COLUMNS", "1000000");
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let log = String::from_utf8_lossy(&output.stderr);
        // Its status is a success also when it could not do anything.
        if !output.status.success() || log.contains("ERROR") {
            return Err(format!("reladiff: {}: {}", output.status, log.trim()).into());
        }
        // Each is a sign and a row, whose first field is the key.
        let rows = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<(String, Vec<String>)>();
        let keys = rows.map(|row| Ok(row?.1.into_iter().next().unwrap_or_default()));
        keys.collect()
    }
}
