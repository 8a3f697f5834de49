//! NATS with JetStream, built from its own source.

use std::path::PathBuf;

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
        let mut go = go::command(folder.path())?;
        announce(&format!("building {MODULE}"));
        run(go.args(["install", MODULE]).env("GOBIN", entry)).map(drop)
    })
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
