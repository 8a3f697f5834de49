//! NATS with JetStream, built from its own source.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::probe;
use super::recipe::{Program, Recipe, Run, Site, USER};
use crate::debian::{announce, run};
use crate::{Error, Result, cache, go};

const MODULE: &str = "github.com/nats-io/nats-server/v2@v2.12.1";
const ENTRY: &str = "nats-2.12.1";

pub(super) const RECIPE: Recipe = Recipe {
    source: "nats-server 2.12.1",
    ports: 1,
    others: &[],
    has_password: true,
    has_tls: true,
    locate,
    fetch,
    prepare,
    processes: |site| vec![server(site)],
    url,
};

fn locate() -> Option<Program> {
    let home = cache::folder().join(ENTRY);
    let file = home.join("nats-server");
    file.is_file().then_some(Program { file, home })
}

fn fetch() -> Result<()> {
    cache::entry(ENTRY, |entry| {
        let folder = tempfile::tempdir_in(entry).map_err(Error::io("no temporary folder"))?;
        let go = go::program(folder.path())?;
        announce(&format!("building {MODULE}"));
        build(&go, folder.path(), entry)
    })
    .map(drop)
}

/// What is fetched and made on the way stays in `folder`: the program is a tenth of it.
fn build(go: &Path, folder: &Path, entry: &Path) -> Result<()> {
    run(Command::new(go)
        .args(["install", MODULE])
        .env("GOPATH", folder.join("modules"))
        .env("GOCACHE", folder.join("objects"))
        .env("GOBIN", entry)
        // Modules are kept read-only else, and could not be removed.
        .env("GOFLAGS", "-modcacherw -buildvcs=false")
        // No other Go is fetched than the one that is asked.
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .current_dir(folder))
    .map(drop)
}

fn prepare(site: &Site) -> Result<()> {
    let jetstream = format!("{{ store_dir: \"{}\", sync_interval: always }}", site.path("data"));
    let mut own = vec![("listen", format!("\"127.0.0.1:{}\"", site.port())), ("jetstream", jetstream)];
    if let Some(password) = &site.options.password {
        own.push(("authorization", format!("{{ user: \"{USER}\", password: \"{password}\" }}")));
    }
    if site.options.tls {
        let (certificate, key) = (site.path("server.crt"), site.path("server.key"));
        own.push(("tls", format!("{{ cert_file: \"{certificate}\", key_file: \"{key}\" }}")));
    }
    site.write("nats.conf", &site.lines(&own, |name, value| format!("{name}: {value}\n")))
}

fn server(site: &Site) -> Run {
    let mut arguments = vec!["--config".to_owned(), site.path("nats.conf")];
    arguments.extend(site.options.arguments.iter().cloned());
    let program: PathBuf = site.program.file.clone();
    Run { program, arguments, environment: Vec::new(), is_ready }
}

/// It introduces itself when JetStream has read what it has; in plain text, also where TLS follows.
fn is_ready(site: &Site) -> bool {
    probe::answers(site.port(), b"", |answer| answer.starts_with(b"INFO ") && answer.ends_with(b"\r\n"))
}

fn url(site: &Site) -> String {
    let scheme = if site.options.tls { "tls" } else { "nats" };
    format!("{scheme}://{}127.0.0.1:{}", site.login(USER), site.port())
}
