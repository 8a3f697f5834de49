//! Artemis, every protocol on one port.

use std::fs;
use std::path::Path;

use super::probe;
use super::recipe::{Program, Recipe, Run, Site, USER};
use crate::certificate::AUTHORITY;
use crate::java::{self, Jars};
use crate::{Error, Result, debian};

const JARS: Jars = Jars {
    entry: "artemis-2.44.0",
    coordinates: &[
        "org.apache.activemq:artemis-server:2.44.0",
        "org.apache.activemq:artemis-amqp-protocol:2.44.0",
        "org.apache.activemq:artemis-stomp-protocol:2.44.0",
        "org.apache.activemq:artemis-openwire-protocol:2.44.0",
        "org.slf4j:slf4j-simple:2.0.17",
    ],
};

pub(super) const RECIPE: Recipe = Recipe {
    source: "Artemis 2.44.0 with Java 17 or newer",
    ports: 2,
    others: &[("stomp", 0), ("openwire", 0)],
    has_password: true,
    has_tls: true,
    locate: || JARS.locate().map(|(file, home)| Program { file, home }),
    fetch: || JARS.fetch(native),
    prepare,
    processes: |site| vec![server(site)],
    url,
};

/// The journal is written through the kernel's own queue where the library of that is here. Without it the server falls
/// back by itself, and says so in its log.
fn native(_machine: &Path, home: &Path) -> Result<()> {
    if debian::can_install() {
        let _named_otherwise = debian::install(&["libaio1"]);
    }
    Jars::unpack(home, "activemq-artemis-native", "lib/linux-x86_64/*.so", "native")
}

fn prepare(site: &Site) -> Result<()> {
    if site.options.tls {
        let read =
            |name: &str| fs::read_to_string(site.folder.join(name)).map_err(Error::io(name.to_owned()));
        site.write("server.pem", &(read("server.key")? + &read("server.crt")?))?;
    }
    site.write(
        "etc/broker.xml",
        &format!(
            r#"<configuration xmlns="urn:activemq">
  <core xmlns="urn:activemq:core">
    <name>tidegate</name>
    <journal-type>ASYNCIO</journal-type>
    <journal-pool-files>10</journal-pool-files>
    <!-- A disk that is nearly full, or a pause, is the machine's affair and no reason to refuse or to end. -->
    <max-disk-usage>-1</max-disk-usage>
    <critical-analyzer>false</critical-analyzer>
    <acceptors>
{acceptors}
    </acceptors>
    <security-settings>
      <security-setting match="{EVERYTHING}">
{permissions}      </security-setting>
    </security-settings>
  </core>
</configuration>
"#,
            acceptors = acceptors(site),
            permissions = permissions(),
        ),
    )?;
    // Read after the file above, and whatever else ends so in that folder.
    site.write("etc/broker.properties", &site.lines(&[], |name, value| format!("{name}={value}\n")))?;
    site.write("login/users.properties", &format!("{USER}={}\n", password(site)))?;
    site.write("login/roles.properties", &format!("{ROLE}={USER}\n"))?;
    site.write("login/certificates.properties", &format!("{USER}={CERTIFIED}\n"))?;
    site.write(
        "login/login.config",
        &format!(
            r#"{DOMAIN} {{
  org.apache.activemq.artemis.spi.core.security.jaas.PropertiesLoginModule sufficient
    org.apache.activemq.jaas.properties.user="users.properties"
    org.apache.activemq.jaas.properties.role="roles.properties";
  org.apache.activemq.artemis.spi.core.security.jaas.TextFileCertificateLoginModule sufficient
    org.apache.activemq.jaas.textfiledn.user="certificates.properties"
    org.apache.activemq.jaas.textfiledn.role="roles.properties";
}};
"#
        ),
    )
}

/// One for everything. Where TLS has the port of the URL, plain text has one beside it, for our own question whether the server
/// is ready.
fn acceptors(site: &Site) -> String {
    let acceptor = |name: &str, port: u16, more: &str| {
        format!(
            "      <acceptor name=\"{name}\">tcp://127.0.0.1:{port}?{PROTOCOLS};securityDomain={DOMAIN}{more}</acceptor>"
        )
    };
    if !site.options.tls {
        return acceptor("all", site.port(), "");
    }
    // Clients may show a certificate by the same authority: it is their login then.
    let tls = format!(
        ";sslEnabled=true;keyStoreType=PEM;keyStorePath={};wantClientAuth=true;trustStoreType=PEMCA;trustStorePath={};saslMechanisms=EXTERNAL,PLAIN",
        site.path("server.pem"),
        site.path(AUTHORITY),
    );
    acceptor("all", site.port(), &tls) + "\n" + &acceptor("plain", plain_port(site), "")
}

fn plain_port(site: &Site) -> u16 {
    site.ports[usize::from(site.options.tls)]
}

/// Who the certificate of the server says that it is, for whoever shows it as a client.
const CERTIFIED: &str = "CN=rcgen self signed cert";
const PROTOCOLS: &str = "protocols=CORE,AMQP,STOMP,OPENWIRE";
const DOMAIN: &str = "tidegate";
const EVERYTHING: &str = "#";
const ROLE: &str = "everything";

fn permissions() -> String {
    const ALL: &[&str] = &[
        "createAddress",
        "deleteAddress",
        "createDurableQueue",
        "deleteDurableQueue",
        "createNonDurableQueue",
        "deleteNonDurableQueue",
        "send",
        "consume",
        "browse",
        "manage",
    ];
    ALL.iter().map(|name| format!("        <permission type=\"{name}\" roles=\"{ROLE}\"/>\n")).collect()
}

fn server(site: &Site) -> Run {
    let native = site.program.home.join("native/lib/linux-x86_64").display().to_string();
    let mut asked = vec![
        format!("-Djava.library.path={native}"),
        format!("-Djava.security.auth.login.config={}", site.path("login/login.config")),
        // Else every look at a queue is two lines of log.
        "-Dorg.slf4j.simpleLogger.log.org.apache.activemq.audit=warn".to_owned(),
    ];
    asked.extend(site.options.arguments.iter().cloned());
    let class = "org.apache.activemq.artemis.core.server.embedded.Main";
    let mut arguments = java::arguments(&site.program.home, class, &asked);
    // It reads `etc` there, and writes `data`.
    arguments.push(site.folder.display().to_string());
    let is_ready = |site: &Site| probe::speaks_amqp_1(plain_port(site));
    Run { program: site.program.file.clone(), arguments, environment: Vec::new(), is_ready }
}

fn password(site: &Site) -> &str {
    site.options.password.as_deref().unwrap_or("password")
}

fn url(site: &Site) -> String {
    let scheme = if site.options.tls { "artemiss" } else { "artemis" };
    format!("{scheme}://{USER}:{}@127.0.0.1:{}", password(site), site.port())
}
