//! Commands whose output is seen while they run.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// It was killed because its time was up.
    pub(crate) timed_out: bool,
}

/// `cargo` as it would be without us: `cargo run` sets variables that build scripts look at, and what differs is built
/// again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours =
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "OUT_DIR"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command, prints its output as it comes (both streams, in their order) and hands each line on. With a limit,
/// the command and all that it started is killed when the time is up.
pub(crate) fn run(
    command: &mut Command,
    limit: Option<Duration>,
    mut line: impl FnMut(&str),
) -> io::Result<Ended> {
    let (output, input) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    if limit.is_some() {
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    // The command holds ends of the pipe as well, and reading would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (ended, watched) = mpsc::channel::<()>();
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let watcher = limit.map(|limit| {
        std::thread::spawn(move || {
            let timed_out = watched.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if let (true, Some(group)) = (timed_out, group) {
                let _gone_already = kill_process_group(group, Signal::KILL);
            }
            timed_out
        })
    });
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        io::stdout().write_all(&bytes)?;
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    let status = child.wait()?;
    drop(ended);
    let timed_out = watcher.is_some_and(|watcher| watcher.join().unwrap_or(false));
    Ok(Ended { status, timed_out })
}

/// Runs a command and prints its output; whether it succeeded.
pub(crate) fn passes(command: &mut Command) -> Result<bool, String> {
    let name = command.get_program().display().to_string();
    let ended = run(command, None, |_| ()).map_err(|cause| format!("{name} could not be run: {cause}"))?;
    Ok(ended.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_come_in_their_order() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo a; echo b >&2; echo c; exit 3"]);
        let ended = run(&mut command, None, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["a", "b", "c"]);
        assert_eq!(ended.status.code(), Some(3));
    }

    #[test]
    fn a_command_past_its_limit_is_killed_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & wait"]);
        let ended = run(&mut command, Some(Duration::from_millis(100)), |_| ()).unwrap();
        assert!(ended.timed_out && !ended.status.success());
    }
}
