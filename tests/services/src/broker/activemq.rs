//! ActiveMQ Classic with a connector for each protocol.

use super::probe;
use super::recipe::{Program, Recipe, Run, Site, USER};
use crate::Result;
use crate::java::{self, Jars};

const JARS: Jars = Jars {
    entry: "activemq-5.18.3",
    coordinates: &[
        "org.apache.activemq:activemq-broker:5.18.3",
        "org.apache.activemq:activemq-kahadb-store:5.18.3",
        "org.apache.activemq:activemq-amqp:5.18.3",
        "org.apache.activemq:activemq-stomp:5.18.3",
        "org.apache.activemq:activemq-spring:5.18.3",
        "org.apache.activemq:activemq-jaas:5.18.3",
        "org.apache.activemq:activemq-console:5.18.3",
        "org.springframework:spring-context:5.3.30",
        "org.slf4j:slf4j-simple:2.0.9",
    ],
};

pub(super) const RECIPE: Recipe = Recipe {
    source: "ActiveMQ Classic 5.18.3 with Java 17 or newer",
    ports: 3,
    others: &[("stomp", 1), ("openwire", 2)],
    has_password: true,
    has_tls: false,
    locate: || JARS.locate().map(|(file, home)| Program { file, home }),
    fetch: || JARS.fetch(|_, _| Ok(())),
    prepare,
    processes: |site| vec![server(site)],
    url,
};

fn prepare(site: &Site) -> Result<()> {
    let own = [
        ("brokerName", "tidegate".to_owned()),
        ("dataDirectory", site.path("data")),
        ("persistent", "true".to_owned()),
        ("schedulerSupport", "true".to_owned()),
        ("useJmx", "false".to_owned()),
    ];
    let attribute = |name: &str, value: &str| match name {
        STATISTICS | TRANSFORMER | STORE => String::new(),
        _ => format!(" {name}=\"{}\"", escape(value)),
    };
    let attributes = site.lines(&own, attribute);
    let (amqp, stomp, openwire) = (site.ports[0], site.ports[1], site.ports[2]);
    let transformer = setting(site, TRANSFORMER).unwrap_or("jms");
    let (journal, plugins, usage) = (site.path("data/kahadb"), plugins(site), usage(site));
    site.write(
        "activemq.xml",
        // The connectors start in this order, and the last one is asked whether the server is ready.
        &format!(
            r#"<beans xmlns="http://www.springframework.org/schema/beans"
  xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="
    http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
    http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
  <broker xmlns="http://activemq.apache.org/schema/core"{attributes}>
{plugins}    <persistenceAdapter>
      <kahaDB directory="{journal}" journalDiskSyncStrategy="always"/>
    </persistenceAdapter>
{usage}    <transportConnectors>
      <transportConnector name="openwire" uri="tcp://127.0.0.1:{openwire}"/>
      <transportConnector name="stomp" uri="stomp://127.0.0.1:{stomp}"/>
      <transportConnector name="amqp" uri="amqp://127.0.0.1:{amqp}?transport.wireFormat.idleTimeout=4000&amp;transport.tcpNoDelay=true&amp;transport.transformer={transformer}"/>
    </transportConnectors>
  </broker>
</beans>
"#
        ),
    )
}

/// Settings that are no attributes of the broker's: whether it answers who asks about its queues, and what messages of AMQP are
/// for clients of other protocols (`native`, its own default: bytes; `jms`: what they are), and how much it keeps on its disk,
/// in bytes, before it refuses more.
const STATISTICS: &str = "statistics";
const TRANSFORMER: &str = "transformer";
const STORE: &str = "store";

fn usage(site: &Site) -> String {
    setting(site, STORE).map_or_else(String::new, |bytes| {
        format!("    <systemUsage><systemUsage sendFailIfNoSpace=\"true\"><storeUsage><storeUsage limit=\"{bytes}\"/></storeUsage></systemUsage></systemUsage>\n")
    })
}

/// What counts messages and consumers for who asks, and who may enter: without a password everybody.
fn plugins(site: &Site) -> String {
    let login = site.options.password.as_ref().map_or_else(String::new, |password| {
        let user = format!("username=\"{USER}\" password=\"{}\" groups=\"users\"", escape(password));
        format!(
            "<simpleAuthenticationPlugin><users><authenticationUser {user}/></users></simpleAuthenticationPlugin>"
        )
    });
    let statistics =
        if setting(site, STATISTICS) == Some("false") { "" } else { "<statisticsBrokerPlugin/>" };
    format!("    <plugins>{login}{statistics}</plugins>\n")
}

fn setting<'a>(site: &'a Site, wanted: &str) -> Option<&'a str> {
    let mut settings = site.options.settings.iter();
    settings.find_map(|(name, value)| (name == wanted).then_some(value.as_str()))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

fn server(site: &Site) -> Run {
    let class = "org.apache.activemq.console.command.ShellCommand";
    let mut arguments = java::arguments(&site.program.home, class, &site.options.arguments);
    arguments.extend(["start".to_owned(), format!("xbean:file:{}", site.path("activemq.xml"))]);
    let is_ready = |site: &Site| probe::speaks_amqp_1(site.port());
    Run { program: site.program.file.clone(), arguments, environment: Vec::new(), is_ready }
}

fn url(site: &Site) -> String {
    // Where a client in its own protocol finds it.
    format!("activemq://{}127.0.0.1:{}?openwire={}", site.login(USER), site.port(), site.ports[2])
}
