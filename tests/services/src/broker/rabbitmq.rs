//! RabbitMQ, from Debian's package.

use std::ffi::OsString;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::probe;
use super::recipe::{Program, Recipe, Run, Site};
use crate::debian;
use crate::{Error, Result};

pub(super) const RECIPE: Recipe = Recipe {
    source: "RabbitMQ 3.10 or newer",
    ports: 4,
    others: &[],
    has_password: true,
    has_tls: true,
    locate,
    fetch,
    prepare,
    processes: |site| vec![port_mapper(site), server(site)],
    url,
};

const VERSIONS: &str = "/usr/lib/rabbitmq/lib";
const OLDEST: (u32, u32) = (3, 10);
const GUEST: &str = "guest";

/// The server's own script: the one on the path changes the user first.
fn locate() -> Option<Program> {
    debian::find("epmd")?;
    let folders = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let homes = folders.filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path())));
    let (_, home) = homes.filter(|(version, _)| *version >= OLDEST).max()?;
    let file = home.join("sbin/rabbitmq-server");
    file.is_file().then_some(Program { file, home })
}

fn version(folder: &str) -> Option<(u32, u32)> {
    let mut parts = folder.strip_prefix("rabbitmq_server-")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn fetch() -> Result<()> {
    if !debian::can_install() {
        return Err(Error::failed("RabbitMQ is not installed (Debian's package rabbitmq-server)"));
    }
    debian::install_stopped("rabbitmq-server", &["rabbitmq-server", "epmd.socket", "epmd.service"])
}

fn prepare(site: &Site) -> Result<()> {
    let mut own = vec![
        ("listeners.tcp.1", format!("127.0.0.1:{}", plain_port(site))),
        ("default_pass", password(site).to_owned()),
        ("log.console", "true".to_owned()),
        ("log.file", "false".to_owned()),
    ];
    if site.options.tls {
        own.push(("listeners.ssl.1", format!("127.0.0.1:{}", site.port())));
        own.push(("ssl_options.certfile", site.path("server.crt")));
        own.push(("ssl_options.keyfile", site.path("server.key")));
        own.push(("ssl_options.cacertfile", site.path(crate::certificate::AUTHORITY)));
        own.push(("ssl_options.verify", "verify_none".to_owned()));
    }
    site.write("rabbitmq.conf", &site.lines(&own, |name, value| format!("{name} = {value}\n")))?;
    site.write("enabled_plugins", "[].\n")?;
    // To look through the plugins takes half of the time of a start; this one has the schema of the configuration.
    let plugins = site.folder.join("plugins");
    let failed = || format!("{} could not be made", plugins.display());
    fs::create_dir(&plugins).map_err(Error::io(failed()))?;
    for entry in fs::read_dir(site.program.home.join("plugins")).map_err(Error::io(failed()))?.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("rabbit-") {
            symlink(entry.path(), plugins.join(name)).map_err(Error::io(failed()))?;
        }
    }
    Ok(())
}

/// Erlang's register of nodes. Every server has its own, so that it ends with the server and knows no other.
fn port_mapper(site: &Site) -> Run {
    let arguments =
        ["-port", &mapper_port(site).to_string(), "-address", "127.0.0.1"].map(str::to_owned).to_vec();
    Run {
        program: PathBuf::from("epmd"),
        arguments,
        environment: Vec::new(),
        is_ready: |site| TcpStream::connect(("127.0.0.1", mapper_port(site))).is_ok(),
    }
}

fn mapper_port(site: &Site) -> u16 {
    site.ports[1]
}

fn server(site: &Site) -> Run {
    let text = |name: &str, value: &str| (name.to_owned(), OsString::from(value));
    let path = |name: &str, file: &str| (name.to_owned(), OsString::from(site.path(file)));
    let environment = vec![
        // Here is the cookie, too.
        path("HOME", ""),
        text("LANG", "C.UTF-8"),
        // The script becomes the server, instead of waiting for it.
        text("RUNNING_UNDER_SYSTEMD", "true"),
        text("RABBITMQ_NODENAME", &format!("tidegate-{}@localhost", site.port())),
        text("RABBITMQ_DIST_PORT", &site.ports[2].to_string()),
        path("RABBITMQ_MNESIA_BASE", "data"),
        path("RABBITMQ_LOG_BASE", "log"),
        path("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        // What the system has for its own server is not read.
        path("RABBITMQ_CONFIG_FILES", "absent"),
        path("RABBITMQ_ADVANCED_CONFIG_FILE", "absent.config"),
        text("RABBITMQ_CONF_ENV_FILE", "/dev/null"),
        path("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
        path("RABBITMQ_PLUGINS_DIR", "plugins"),
        path("RABBITMQ_PID_FILE", "rabbitmq.pid"),
        text("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}"),
        text("ERL_EPMD_PORT", &mapper_port(site).to_string()),
        // Else a second one would be started, which nobody ends.
        text("ERL_ZFLAGS", "-start_epmd false"),
    ];
    let arguments = site.options.arguments.clone();
    Run { program: site.program.file.clone(), arguments, environment, is_ready }
}

/// The whole way to an open virtual host, which is there at the very end of a start.
fn is_ready(site: &Site) -> bool {
    let mut request = b"AMQP\x00\x00\x09\x01".to_vec();
    let login = [b"\0", GUEST.as_bytes(), b"\0", password(site).as_bytes()].concat();
    // Start-ok: no properties, PLAIN, the login, the language.
    let mut start = vec![0, 0, 0, 0, 5];
    start.extend(b"PLAIN");
    start.extend(u32::try_from(login.len()).unwrap_or(0).to_be_bytes());
    start.extend(login);
    start.extend(b"\x05en_US");
    request.extend(method(11, &start));
    // Tune-ok: 16 channels, frames of 8 KiB, no heartbeat.
    request.extend(method(31, &[0, 16, 0, 0, 0x20, 0, 0, 0]));
    // Open: the virtual host `/`.
    request.extend(method(40, b"\x01/\0\0"));
    let open_ok = method(41, &[0]);
    probe::answers(plain_port(site), &request, |answer| probe::contains(answer, &open_ok))
}

/// A frame on channel 0 with a method of the class of connections.
fn method(number: u8, arguments: &[u8]) -> Vec<u8> {
    let length = u32::try_from(arguments.len() + 4).unwrap_or(0).to_be_bytes();
    [&[1, 0, 0], &length[..], &[0, 10, 0, number], arguments, &[0xce]].concat()
}

/// Where TLS has the port of the URL, plain text has one beside it, for our own question whether the server is ready.
fn plain_port(site: &Site) -> u16 {
    if site.options.tls { site.ports[3] } else { site.port() }
}

fn password(site: &Site) -> &str {
    site.options.password.as_deref().unwrap_or(GUEST)
}

fn url(site: &Site) -> String {
    let scheme = if site.options.tls { "amqps" } else { "amqp" };
    format!("{scheme}://{GUEST}:{}@127.0.0.1:{}", password(site), site.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_name_of_the_folder() {
        assert_eq!(version("rabbitmq_server-3.10.8"), Some((3, 10)));
        assert!(version("rabbitmq_server-3.9.1") < Some(OLDEST));
        assert_eq!(version("plugins"), None);
    }

    #[test]
    fn a_frame_has_its_length_and_its_end() {
        assert_eq!(method(41, &[0]), [1, 0, 0, 0, 0, 0, 5, 0, 10, 0, 41, 0, 0xce]);
    }
}
