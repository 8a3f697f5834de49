//! A server's processes: born with their parent's life as a limit, ended by pid.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::account::Account;
use crate::debian::last_lines;
use crate::{Error, Result, Service};

/// How long a server lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// At most as long as this process, even if that is killed.
    Process,
    /// Until somebody ends it.
    Background,
}

/// A server that goes on after the process which started it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Background {
    /// What it is.
    pub service: Service,
    /// Its process.
    pub pid: i32,
    /// Where clients find it.
    pub url: String,
    /// What belongs to it; removed by [`Background::end`].
    pub folder: PathBuf,
}

impl Background {
    /// Whether it still runs; a process that got its pid later does not count.
    pub fn is_running(&self) -> bool {
        is_running(self.pid) && lives_in(self.pid, &self.folder)
    }

    /// Ends it, politely and then by force, and removes its folder.
    ///
    /// # Errors
    /// The folder could not be removed.
    pub fn end(&self) -> Result<()> {
        if self.is_running() {
            send(self.pid, self.service.end_signal());
            for _ in 0..500 {
                if !is_running(self.pid) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if self.is_running() {
            crash(self.pid);
        }
        for companion in pids().filter(|pid| lives_in(*pid, &self.folder)) {
            crash(companion);
        }
        match fs::remove_dir_all(&self.folder) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(self.folder.display())(cause))
            }
            _ => Ok(()),
        }
    }
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, OsString)>,
    pub(crate) account: Option<Account>,
    pub(crate) log: PathBuf,
    pub(crate) lifetime: Lifetime,
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(launch: &Launch) -> Result<Process> {
        let failed = || format!("{} could not be started", launch.program.display());
        let log = File::options().create(true).append(true).open(&launch.log).map_err(Error::io(failed()))?;
        let mut command = Command::new("setpriv");
        if launch.lifetime == Lifetime::Process {
            command.args(["--pdeathsig", "KILL"]);
        }
        if let Some(Account { uid, gid }) = launch.account {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        } else if launch.lifetime == Lifetime::Background {
            command = Command::new("env");
        }
        command.arg(&launch.program).args(&launch.arguments).envs(launch.environment.iter().cloned());
        let folder = launch.log.parent().unwrap_or(Path::new("/"));
        command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stderr(log.try_clone().map_err(Error::io(failed()))?)
            .stdout(log);
        command.process_group(0);
        let child = spawn(command).map_err(Error::io(failed()))?;
        Ok(Process { child, log: launch.log.clone() })
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Waits until `ready` says so; an early end is an error with the end of the log.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let step = Duration::from_millis(20);
        for _ in 0..limit.as_millis() / step.as_millis() {
            if ready() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::failed(format!(
                    "the server ended with {status}: {}",
                    self.last_log_lines()
                )));
            }
            std::thread::sleep(step);
        }
        Err(Error::failed(format!("the server was not ready after {limit:?}: {}", self.last_log_lines())))
    }

    fn last_log_lines(&self) -> String {
        last_lines(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Kills the server and its children at one instant, and waits until they are gone.
    pub(crate) fn crash(&mut self) {
        crash(self.pid());
        let _already_reaped = self.child.wait();
    }

    /// Stops the server and its children where they are; their connections stay open, and nobody answers.
    pub(crate) fn pause(&self) {
        let pid = self.pid();
        send(pid, Signal::STOP);
        for child in descendants(pid) {
            send(child, Signal::STOP);
        }
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&self) {
        let pid = self.pid();
        for child in descendants(pid) {
            send(child, Signal::CONT);
        }
        send(pid, Signal::CONT);
    }

    /// Asks the server to end; kills it if it has not after `limit`.
    pub(crate) fn stop(&mut self, signal: Signal, limit: Duration) {
        send(self.pid(), signal);
        for _ in 0..limit.as_millis() / 20 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.crash();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.crash();
        }
    }
}

impl Process {
    /// Lets the server go on without this process.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

/// Whether a process is there and not a zombie.
pub fn is_running(pid: i32) -> bool {
    stat(pid).is_some_and(|(_, state)| state != 'Z')
}

fn crash(pid: i32) {
    // A stopped parent starts no further child while the list is read, and mourns none of them.
    send(pid, Signal::STOP);
    let family = descendants(pid);
    for child in &family {
        send(*child, Signal::KILL);
    }
    send(pid, Signal::KILL);
    for _ in 0..500 {
        if !family.iter().any(|child| is_running(*child)) && !is_running(pid) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _gone_already = kill_process(pid, signal);
    }
}

/// Children, their children and so on, the nearest first.
fn descendants(ancestor: i32) -> Vec<i32> {
    let processes: Vec<(i32, i32)> = pids().filter_map(|pid| Some((pid, stat(pid)?.0))).collect();
    let mut family = vec![ancestor];
    let mut known = 0;
    while let Some(&parent) = family.get(known) {
        family.extend(processes.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        known += 1;
    }
    family.split_off(1)
}

/// Whether a process works in `folder`; every process of a server is started there, and some rewrite their command line.
fn lives_in(pid: i32, folder: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|home| home.starts_with(folder))
}

fn pids() -> impl Iterator<Item = i32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The parent and the state of a process. Its name stands in brackets and may hold anything, so the last one counts.
fn stat(pid: i32) -> Option<(i32, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// The death of the *thread* that started a process sends the signal, and every test has a thread of its own: so one
/// thread, which lives as long as the process, starts them all.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static KEEPER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
        let (send, receive) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in receive {
                let _caller_gone = answer.send(command.spawn());
            }
        });
        Mutex::new(send)
    });
    let gone = || io::Error::other("the thread that starts servers is gone");
    let (answer, answered) = mpsc::channel();
    KEEPER.lock().map_err(|_| gone())?.send((command, answer)).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())?
}
