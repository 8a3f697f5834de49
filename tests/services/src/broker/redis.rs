//! Redis, from Debian's package.

use super::probe;
use super::recipe::{Program, Recipe, Run, Site};
use crate::debian;
use crate::{Error, Result};

pub(super) const RECIPE: Recipe = Recipe {
    source: "redis-server",
    ports: 2,
    others: &[],
    has_password: true,
    has_tls: true,
    locate,
    fetch,
    prepare: |_| Ok(()),
    processes: |site| vec![server(site)],
    url,
};

fn locate() -> Option<Program> {
    let file = debian::find("redis-server")?;
    Some(Program { home: file.parent()?.to_owned(), file })
}

fn fetch() -> Result<()> {
    if !debian::can_install() {
        return Err(Error::failed("redis-server is not installed (Debian's package redis-server)"));
    }
    debian::install_stopped("redis-server", &["redis-server"])
}

fn server(site: &Site) -> Run {
    let mut own = vec![
        ("bind", "127.0.0.1".to_owned()),
        ("dir", site.path("data")),
        ("appendonly", "yes".to_owned()),
        ("appendfsync", "always".to_owned()),
        // The log of commands has everything; a snapshot now and then would only take time.
        ("save", String::new()),
    ];
    if site.options.tls {
        own.push(("tls-port", site.port().to_string()));
        own.push(("tls-cert-file", site.path("server.crt")));
        own.push(("tls-key-file", site.path("server.key")));
        own.push(("tls-ca-cert-file", site.path(crate::certificate::AUTHORITY)));
        own.push(("tls-auth-clients", "no".to_owned()));
    }
    own.push(("port", plain_port(site).to_string()));
    if let Some(password) = &site.options.password {
        own.push(("requirepass", password.clone()));
    }
    let settings = site.settings(&own).into_iter();
    let mut arguments: Vec<_> = settings.flat_map(|(name, value)| [format!("--{name}"), value]).collect();
    arguments.extend(site.options.arguments.iter().cloned());
    Run { program: site.program.file.clone(), arguments, environment: Vec::new(), is_ready }
}

/// While the log of commands is read, the answer is `-LOADING`.
fn is_ready(site: &Site) -> bool {
    let password = site.options.password.as_ref();
    let request = password.map(|password| format!("AUTH {password}\r\n")).unwrap_or_default() + "PING\r\n";
    probe::answers(plain_port(site), request.as_bytes(), |answer| answer.ends_with(b"+PONG\r\n"))
}

/// Where TLS has the port of the URL, plain text has one beside it, for our own question whether the server is ready.
fn plain_port(site: &Site) -> u16 {
    site.ports[usize::from(site.options.tls)]
}

fn url(site: &Site) -> String {
    let scheme = if site.options.tls { "rediss" } else { "redis" };
    format!("{scheme}://{}127.0.0.1:{}", site.login(""), site.port())
}
