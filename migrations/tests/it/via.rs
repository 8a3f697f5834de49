//! Everything goes through a broker, in one process or in two.

use tidegate_services::broker::{Broker, shared};

use crate::pairs::{CHANGES, POSTGRES, SQLITE, abort, psql};
use crate::runner::Runner;
use crate::{shop, sqlite, sqlite_rows, tidegate};

/// A broker in a file that forgets a killed process soon.
fn broker(folder: &tempfile::TempDir) -> String {
    format!("sqlite:{}?lease_ms=1000&grace_ms=200", folder.path().join("broker.db").display())
}

fn run(from: &str, to: &str, more: &[&str]) {
    let words = ["migrate", "run", "--from", from, "--to", to, "--until", "verified"];
    tidegate(&[&words, more].concat()).ended(0);
}

#[test]
fn two_processes_are_killed_again_and_again_and_nothing_is_lost() {
    let (folder, from, to) = shop(SQLITE);
    let file = folder.path().join("shop.db");
    let via = broker(&folder);
    let half = |role| Runner::start(&from, &to, &["--via", &via, "--role", role, "-v"]);
    let mut halves = (half("source"), half("target"));
    for n in 0..12 {
        sqlite(
            &file,
            &format!(
                "UPDATE orders SET note = 'n{n}' WHERE id % 10 = {n} AND id > 0;
                 DELETE FROM orders WHERE id = {}; INSERT INTO orders (id, note) VALUES ({}, 'new')",
                100 + n,
                10_000 + n
            ),
        );
        std::thread::sleep(std::time::Duration::from_millis(300));
        // Dropped is killed.
        if n % 2 == 0 {
            halves.1 = half("target");
        } else {
            halves.0 = half("source");
        }
    }
    drop(halves.0);
    run(&from, &to, &["--via", &via, "--role", "source", "--timeout", "60s"]);
    let rows =
        "SELECT count(*) || ' ' || sum(id = 10011) || ' ' || sum(note = 'n9') FROM orders WHERE id > 0";
    assert_eq!(sqlite_rows(&folder.path().join("new.db"), rows), sqlite_rows(&file, rows));
    // The half that writes ends when it is told to, and could go on.
    halves.1.signal("-TERM");
    halves.1.end().failed(7, "TG0071 stopped", &["what was in flight is in the target"]);
}

#[test]
fn the_half_that_reads_says_that_nobody_writes() {
    let (folder, from, to) = shop(SQLITE);
    let via = broker(&folder);
    let reader = Runner::start(&from, &to, &["--via", &via, "--role", "source"]);
    std::thread::sleep(std::time::Duration::from_secs(11));
    reader.signal("-TERM");
    let said = ["nobody answers at the target's end of the broker"];
    reader.end().failed(7, "TG0071 stopped: stopped on request while the run was broken", &said);
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let (folder, from, to) = shop(SQLITE);
    let words = ["migrate", "run", "--from", &from, "--to", &to];
    let refused = |more: &[&str]| tidegate(&[&words, more].concat());
    refused(&["--role", "target"]).failed(2, "TG0001 config-invalid", &["give --via URL"]);
    refused(&["--role", "source", "--via", "memory:"]).failed(
        3,
        "TG0030 capability-missing: memory: has no processes",
        &["--via sqlite:PATH is shared by the processes of one machine"],
    );
    let known = if cfg!(feature = "kafka") {
        "known: activemq: activemqs: amqp: amqps: artemis: artemiss: kafka: kafkas: memory: "
    } else {
        "known: activemq: activemqs: amqp: amqps: artemis: artemiss: memory: "
    };
    refused(&["--via", "kafka9://localhost"]).failed(
        2,
        "TG0002 url-invalid",
        &[known, "nats: redis: rediss: sqlite: tls:"],
    );
    let via = broker(&folder);
    refused(&["--role", "target", "--via", &via, "--until", "caught-up"]).failed(
        2,
        "TG0001 config-invalid",
        &["give --until to --role source"],
    );
}

#[test]
fn a_value_that_the_target_refuses_stops_its_table_alone() {
    let (folder, from, to) = shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
        INSERT INTO t VALUES (1, 'a'), (2, 'too long'); CREATE TABLE u (id INTEGER PRIMARY KEY); INSERT INTO u VALUES (1)");
    sqlite(
        &folder.path().join("new.db"),
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT CHECK (length(v) < 5))",
    );
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--until", "caught-up", "--via", "memory:"];
    tidegate(&words).failed(1, "TG0053 constraint-violated: table t stopped: ", &[]);
    assert_eq!(sqlite_rows(&folder.path().join("new.db"), "SELECT id FROM u"), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_keep_the_form_that_both_servers_know() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("via").await.unwrap(), server.create_database("via").await.unwrap());
    psql(&from, POSTGRES);
    // A type that only PostgreSQL has goes through as it is.
    psql(&from, "ALTER TABLE orders ADD COLUMN p point; UPDATE orders SET p = point(id % 7, 1) WHERE id > 0");
    tokio::task::block_in_place(|| {
        let folder = tempfile::tempdir().unwrap();
        let via = broker(&folder);
        run(&from, &to, &["--via", &via, "--name", "via_postgres"]);
        psql(&from, CHANGES);
        run(&from, &to, &["--via", &via, "--name", "via_postgres"]);
        abort("via_postgres", &from, &to);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn between_kinds_of_stores_and_with_a_mapping() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let (from, to) = (server.create_database("via").await.unwrap(), documents.database("via"));
    psql(&from, POSTGRES);
    tokio::task::block_in_place(|| {
        let folder = tempfile::tempdir().unwrap();
        let via = broker(&folder);
        let mapping = folder.path().join("map.toml");
        let map = r#"[[map]]
            table = "lines"
            compute = { loud = { type = "text", value = "row.x + '!'" } }"#;
        std::fs::write(&mapping, map).unwrap();
        let more = [
            "--via",
            &via,
            "--name",
            "via_mongodb",
            "--convert",
            "timestamptz=string",
            "--transform",
            mapping.to_str().unwrap(),
        ];
        run(&from, &to, &more);
        psql(&from, CHANGES);
        run(&from, &to, &more);
        abort("via_mongodb", &from, &to);
    });
}

/// Each half is killed in turn, six times; `broker` is a URL with its settings.
fn each_half_may_be_killed(via: &str, name: &str) {
    let (folder, from, to) = shop(SQLITE);
    let file = folder.path().join("shop.db");
    let half = |role| Runner::start(&from, &to, &["--via", via, "--role", role, "--name", name]);
    let mut halves = (half("source"), half("target"));
    for n in 0..6 {
        let changes = format!("UPDATE orders SET note = 'n{n}' WHERE id % 10 = {n} AND id > 0");
        sqlite(&file, &changes);
        std::thread::sleep(std::time::Duration::from_millis(300));
        // Dropped is killed.
        if n % 2 == 0 {
            halves.1 = half("target");
        } else {
            halves.0 = half("source");
        }
    }
    drop(halves.0);
    run(&from, &to, &["--via", via, "--role", "source", "--timeout", "60s", "--name", name]);
    let rows = "SELECT count(*) || ' ' || sum(note = 'n5') FROM orders WHERE id > 0";
    assert_eq!(sqlite_rows(&folder.path().join("new.db"), rows), sqlite_rows(&file, rows));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Redis, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Nats, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Rabbitmq, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn artemis_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Artemis, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn activemq_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Activemq, 1_000).await;
}

#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_carries_it_and_each_half_may_be_killed() {
    a_server_carries_it(Broker::Kafka, 2_000).await;
}

async fn a_server_carries_it(broker: Broker, lease_ms: u32) {
    let Some(server) = shared(broker).await else { return };
    let url = server.url();
    let behind = if url.contains('?') { '&' } else { '?' };
    let via = format!("{url}{behind}lease_ms={lease_ms}&grace_ms=200");
    let name = format!("via_{}", broker.service().name());
    tokio::task::block_in_place(|| each_half_may_be_killed(&via, &name));
}
