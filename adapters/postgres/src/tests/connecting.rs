use std::time::{Duration, Instant};

use crate::config::{Password, Settings, Tls};
use crate::connect::Session;
use crate::wire::Replication;
use tidegate_core::error::{Verdict, code};
use tidegate_services::postgres::{Options, Server, Tls as ServerTls};
use tidegate_services::{Service, skipped};

use super::{session, settings};

#[tokio::test]
async fn both_clients_connect_and_say_who_they_are() {
    let session = session().await;
    let row = session
        .query_one("SELECT current_setting('application_name'), current_database()", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "tidegate");
    assert_eq!(row.get::<_, &str>(1), settings().database);

    let mut replication = Replication::connect(&settings()).await.unwrap();
    let identity = replication.identify().await.unwrap();
    assert!(identity.system > 0 && identity.timeline >= 1 && identity.flushed.0 > 0, "{identity:?}");
    let rows = replication.query("SELECT current_setting('application_name'), NULL").await.unwrap();
    assert_eq!((rows[0].get(0), rows[0].get(1), rows[0].get(2)), (Some("tidegate"), None, None));
    replication.close().await;
    session.close().await;
}

/// The session uses the binding whenever there is TLS; a server that finds it wrong refuses.
#[tokio::test]
async fn tls_is_spoken_and_the_proof_is_bound_to_it() {
    if skipped(Service::Postgresql) {
        return;
    }
    let (server, mut settings) =
        own_server(Options::default().with_password("s3cret").with_tls(ServerTls::Required)).await;
    settings.tls = Tls::Require;
    let session = Session::connect(&settings).await.unwrap();
    let sql = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = session.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    let mut replication = Replication::connect(&settings).await.unwrap();
    let rows = replication.query(sql).await.unwrap();
    assert_eq!(rows[0].get(0), Some("t"));

    settings.tls = Tls::VerifyFull;
    for error in [
        Session::connect(&settings).await.map(|_| ()).unwrap_err(),
        Replication::connect(&settings).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.code(), code::TLS_FAILED, "{error:?}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("sslrootcert")), "{error:?}");
    }
    settings.root_certificate = server.authority_certificate();
    Session::connect(&settings).await.unwrap();
    Replication::connect(&settings).await.unwrap();
}

async fn own_server(options: Options) -> (Server, Settings) {
    let server = Server::start(options).await.unwrap();
    let settings = Settings::parse(&server.url()).unwrap();
    (server, settings)
}

#[tokio::test]
async fn a_wrong_password_and_a_missing_database_are_told_apart_by_both_clients() {
    if skipped(Service::Postgresql) {
        return;
    }
    let (_server, mut settings) = own_server(Options::default().with_password("s3cret")).await;
    let database = std::mem::replace(&mut settings.database, "no such database".to_owned());
    for error in [
        Session::connect(&settings).await.map(|_| ()).unwrap_err(),
        Replication::connect(&settings).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.code(), code::URL_INVALID, "{error:?}");
    }
    settings.database = database;
    for password in [Password::Plain("wrong".to_owned()), Password::Absent] {
        settings.password = password;
        for error in [
            Session::connect(&settings).await.map(|_| ()).unwrap_err(),
            Replication::connect(&settings).await.map(|_| ()).unwrap_err(),
        ] {
            assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the time a real server takes is the thing measured")]
async fn a_server_that_is_not_there_or_does_not_answer_is_unreachable() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = free.local_addr().unwrap().port();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let begin = Instant::now();
    for port in [silent, closed] {
        let url = format!("postgres://a@127.0.0.1:{port}/a?connect_timeout=1");
        let settings = crate::config::Settings::parse(&url).unwrap();
        for error in [
            Session::connect(&settings).await.map(|_| ()).unwrap_err(),
            Replication::connect(&settings).await.map(|_| ()).unwrap_err(),
        ] {
            assert_eq!((error.code(), error.verdict()), (code::UNREACHABLE, Verdict::Retry), "{error:?}");
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_query_given_up_half_way_does_not_answer_the_next() {
    let mut replication = Replication::connect(&settings()).await.unwrap();
    let given_up =
        tokio::time::timeout(Duration::from_millis(50), replication.query("SELECT pg_sleep(1), 'old'")).await;
    assert!(given_up.is_err());
    let error = replication.query("SELECT 'new'").await.unwrap_err();
    assert_eq!(error.code(), code::CONNECTION_LOST, "{error:?}");
}

#[tokio::test]
async fn a_refused_query_leaves_the_session_usable() {
    let mut replication = Replication::connect(&settings()).await.unwrap();
    let error = replication.query("SELECT * FROM no_such_table").await.unwrap_err();
    assert_eq!(error.code(), code::TABLE_MISSING, "{error:?}");
    assert_eq!(replication.query("SELECT 1; SELECT 2").await.unwrap().len(), 2);
    assert!(replication.query("").await.unwrap().is_empty());
}
