use std::fs;

use tidegate_services::postgres::{Options, Server, Tls, shared};
use tidegate_services::{Error, Service, is_running, skipped};
use tokio_postgres::NoTls;

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "this crate stands below the runtime's scope")]
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_and_a_restart() {
    if skipped(Service::Postgresql) {
        return;
    }
    let server = Server::start(Options::default()).await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    let client = connect(&url).await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)").await.unwrap();
    client.batch_execute("BEGIN; INSERT INTO t VALUES (3)").await.unwrap();
    let (pid, port) = (server.pid().unwrap(), server.port());
    server.kill().await;
    assert_eq!(server.pid(), None);
    assert!(!is_running(pid));
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    assert!(
        server.log().contains("automatic recovery in progress"),
        "it must have been a crash: {}",
        server.log()
    );
    let count: i64 = connect(&url).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_dropped_server_leaves_neither_process_nor_folder() {
    if skipped(Service::Postgresql) {
        return;
    }
    let server = Server::start(Options::default()).await.unwrap();
    let (pid, folder) = (server.pid().unwrap(), server.data_folder());
    assert!(is_running(pid) && folder.exists());
    drop(server);
    assert!(!is_running(pid));
    assert!(!folder.exists());
}

#[tokio::test]
async fn logical_replication_is_on_and_settings_are_taken() {
    if skipped(Service::Postgresql) {
        return;
    }
    let options = Options::default().with_setting("max_slot_wal_keep_size", "64MB");
    let server = Server::start(options).await.unwrap();
    for (name, value) in [("wal_level", "logical"), ("fsync", "on"), ("max_slot_wal_keep_size", "64MB")] {
        assert_eq!(server.sql(&format!("SHOW {name}")).await.unwrap().trim(), value);
    }
}

#[tokio::test]
async fn only_a_fresh_identity_tells_servers_apart() {
    if skipped(Service::Postgresql) {
        return;
    }
    let identity = async |options| {
        let server = Server::start(options).await.unwrap();
        server.sql("SELECT system_identifier FROM pg_control_system()").await.unwrap()
    };
    let template = identity(Options::default()).await;
    assert_eq!(identity(Options::default()).await, template);
    assert_ne!(identity(Options::default().with_fresh_identity()).await, template);
}

#[tokio::test]
async fn a_password_is_asked_for_and_required_tls_refuses_plain_text() {
    if skipped(Service::Postgresql) {
        return;
    }
    let options = Options::default().with_password("se'cret").with_tls(Tls::Offered);
    let server = Server::start(options).await.unwrap();
    let mut config: tokio_postgres::Config =
        format!("host=127.0.0.1 port={} user=postgres", server.port()).parse().unwrap();
    assert!(config.password("wrong").connect(NoTls).await.is_err());
    assert!(config.password("se'cret").connect(NoTls).await.is_ok());
    assert_eq!(server.sql("SHOW ssl").await.unwrap().trim(), "on");
    let authority = fs::read_to_string(server.authority_certificate().unwrap()).unwrap();
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"));

    let server = Server::start(Options::default().with_tls(Tls::Required)).await.unwrap();
    assert!(tokio_postgres::connect(&server.url(), NoTls).await.is_err());
}

#[tokio::test]
async fn the_shared_server_gives_each_test_a_database_of_its_own() {
    let Some(server) = shared().await else { return };
    let first = server.create_database("shared").await.unwrap();
    let second = server.create_database("shared").await.unwrap();
    assert_ne!(first, second);
    connect(&first).await.batch_execute("CREATE TABLE t ()").await.unwrap();
    connect(&second).await.batch_execute("CREATE TABLE t ()").await.unwrap();
    if std::env::var_os(Service::Postgresql.url_variable()).is_some() {
        assert!(matches!(server.kill().await, Err(Error::NotOurs { service: Service::Postgresql })));
    }
}
