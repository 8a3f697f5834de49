//! `cargo xtask services`: the real servers in the background.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tidegate_services::{Background, Service, cache_folder};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Starts servers that go on until `down`.
    Up(Names),
    /// Ends them and removes their data.
    Down(Names),
    /// Says which run, and where.
    Status(Names),
    /// Prints their URLs as shell exports: `eval "$(cargo xtask services env)"`.
    Env(Names),
}

#[derive(Debug, clap::Args)]
struct Names {
    /// If none is named: those that the test command starts, and those that are up.
    names: Vec<Service>,
}

impl Names {
    fn services(&self, state: &State) -> Vec<Service> {
        if !self.names.is_empty() {
            return self.names.clone();
        }
        let meant = |service: &Service| service.is_used() || state.contains_key(service.name());
        Service::ALL.iter().copied().filter(meant).collect()
    }
}

/// As kept in the state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    pid: i32,
    url: String,
    folder: PathBuf,
}

impl Kept {
    fn server(&self, service: Service) -> Background {
        Background { service, pid: self.pid, url: self.url.clone(), folder: self.folder.clone() }
    }
}

type State = BTreeMap<String, Kept>;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    // One at a time, or a server would be started whose pid nobody keeps.
    let _lock = lock().map_err(|cause| format!("{}: {cause}", cache_folder().display()))?;
    let mut state = load()?;
    match &arguments.verb {
        Verb::Up(names) => {
            for service in names.services(&state) {
                up(service, &mut state)?;
            }
        }
        Verb::Down(names) => {
            for service in names.services(&state) {
                if let Some(kept) = state.get(service.name()) {
                    kept.server(service).end().map_err(|cause| cause.to_string())?;
                    state.remove(service.name());
                    save(&state)?;
                    println!("{service}: down");
                }
            }
        }
        Verb::Status(names) => {
            for service in names.services(&state) {
                match running(service, &state) {
                    Some(kept) => println!("{service}: up, {} (pid {})", kept.url, kept.pid),
                    None => println!("{service}: down"),
                }
            }
        }
        Verb::Env(names) => {
            for service in names.services(&state) {
                if let Some(kept) = running(service, &state) {
                    println!("export {}='{}'", service.url_variable(), kept.url);
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(service: Service, state: &mut State) -> Result<(), String> {
    if let Some(kept) = running(service, state) {
        println!("{service}: up already, {}", kept.url);
        return Ok(());
    }
    if let Some(dead) = state.remove(service.name()) {
        dead.server(service).end().map_err(|cause| cause.to_string())?;
    }
    let server = Background::start(service).map_err(|cause| cause.to_string())?;
    println!("{service}: up, {}", server.url);
    let kept = Kept { pid: server.pid, url: server.url, folder: server.folder };
    state.insert(service.name().to_owned(), kept);
    save(state)
}

fn running(service: Service, state: &State) -> Option<&Kept> {
    state.get(service.name()).filter(|kept| kept.server(service).is_running())
}

fn file() -> PathBuf {
    cache_folder().join("services.json")
}

fn lock() -> io::Result<fs::File> {
    fs::create_dir_all(cache_folder())?;
    let file = fs::File::create(cache_folder().join("services.lock"))?;
    file.lock()?;
    Ok(file)
}

fn load() -> Result<State, String> {
    match fs::read_to_string(file()) {
        Ok(text) => serde_json::from_str(&text).map_err(|cause| format!("{}: {cause}", file().display())),
        Err(_) => Ok(State::new()),
    }
}

fn save(state: &State) -> Result<(), String> {
    let text = serde_json::to_string_pretty(state).map_err(|cause| cause.to_string())?;
    fs::write(file(), text).map_err(|cause| format!("{}: {cause}", file().display()))
}
