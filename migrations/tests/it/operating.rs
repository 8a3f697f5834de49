//! What an operator asks: is it sound, is it alive, what does it cost.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_services::postgres::{Options, Server};

use crate::columns::wait;
use crate::runner::Runner;
use crate::{shop, sqlite, tidegate};

const SHOP: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO orders VALUES (1, 'a')";

/// A server with settings of its own; nothing where PostgreSQL is skipped by name.
pub(crate) async fn server(options: Options) -> Option<Server> {
    tidegate_services::postgres::shared().await?;
    Some(Server::start(options).await.unwrap())
}

#[test]
fn doctor_finds_nothing_on_a_sound_file_and_says_so() {
    let (folder, from, to) = shop(SHOP);
    let answer = tidegate(&["doctor", "--from", &from, "--to", &to]).ended(0);
    assert!(!folder.path().join("new.db").exists(), "looking makes nothing");
    assert!(answer.out.contains("journal_mode") && answer.out.contains("nothing to mend"), "{}", answer.out);
    let json = tidegate(&["--json", "doctor", "--from", &from, "--to", &to]).ended(0).json();
    assert_eq!(json[0]["findings"][0]["weight"], "good");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_loses_data_and_ends_with_3() {
    let options = Options::default().with_setting("wal_level", "replica");
    let Some(server) = server(options.with_setting("synchronous_commit", "off")).await else { return };
    let url = server.create_database("shop").await.unwrap();
    let answer = tokio::task::block_in_place(|| tidegate(&["doctor", "--from", &url, "--to", &url]).ended(3));
    for words in [
        "LOSS",
        "wal_level",
        "ALTER SYSTEM SET wal_level = logical",
        "synchronous_commit",
        "max_slot_wal_keep_size",
    ] {
        assert!(answer.out.contains(words), "{words:?} is not in: {}", answer.out);
    }
    let refused =
        tokio::task::block_in_place(|| tidegate(&["plan", "--from", &url, "--to", "sqlite:new.db"]).ended(3));
    assert!((refused.out + &refused.err).contains("TG0025 wal-level"));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_at_mongodb() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    let url = server.database("doctor");
    let answer = tokio::task::block_in_place(|| tidegate(&["doctor", "--from", &url, "--to", &url]).ended(0));
    assert!(answer.out.contains("the log reaches back"), "{}", answer.out);
}

#[test]
fn grants_are_a_script_for_each_store_and_side() {
    for (url, side, words) in [
        ("postgres://u@h/shop", "source", "LOGIN REPLICATION"),
        ("postgres://u@h/shop", "target", "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE \"shop\""),
        ("postgres://u@h/shop", "target", "GRANT SET ON PARAMETER session_replication_role"),
        ("mongodb://h/shop?replicaSet=r", "source", "readWrite"),
        ("sqlite:/data/shop.db", "source", "setfacl"),
    ] {
        let answer = tidegate(&["grants", "--for", side, "--user", "mover", url]).ended(0);
        assert!(answer.out.contains(words) && answer.out.contains("mover"), "{url}: {}", answer.out);
    }
    // Found by trying: they were for a user that the URL did not name.
    for (url, user) in [
        ("postgres://mover@h/shop", "TO \"mover\";"),
        ("postgres://m%6Fver@h/shop", "TO \"mover\";"),
        ("mongodb://h/shop?replicaSet=r", "user: \"tidegate\""),
        ("mongodb://mover:secret@h/shop?replicaSet=r", "user: \"mover\""),
    ] {
        let answer = tidegate(&["grants", "--for", "source", url]).ended(0);
        assert!(answer.out.contains(user), "{url}: {}", answer.out);
    }
}

/// Found by trying: some verbs answered a script with nothing, or with text.
#[test]
fn every_verb_answers_a_script_with_one_document() {
    let (folder, from, to) = shop(SHOP);
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "").unwrap();
    let ends = ["--from", from.as_str(), "--to", to.as_str()];
    let json = |words: &[&str]| tidegate(&[&["--json"], words].concat()).ended(0).json();
    let verb = |words: &[&str]| json(&[words, &ends].concat());
    assert_eq!(verb(&["plan"])["tables"][0]["source"], "orders");
    assert_eq!(verb(&["migrate", "run", "--until", "caught-up"])["rows_crawled"], 1);
    for words in [&["pause"][..], &["resume"], &["recopy", "--table", "orders"], &["set", "workers=2"]] {
        let answer = verb(&[&["migrate"], words].concat());
        assert_eq!((&answer["name"], &answer["running"]), (&"shop_to_new".into(), &false.into()), "{answer}");
    }
    assert_eq!(verb(&["migrate", "run", "--until", "verified"])["equal"], true);
    assert_eq!(verb(&["migrate", "skip", "--table", "orders"])["running"], false);
    assert_eq!(verb(&["migrate", "abort", "--yes"])["removed_from_source"], true);
    assert_eq!(json(&["explain", "slot-lost"])["code"], "TG0040");
    assert!(json(&["grants", "--for", "source", &from])["script"].is_string());
    assert_eq!(json(&["-c", file.to_str().unwrap(), "config", "check"])["valid"], true);
}

#[test]
fn a_manual_page_is_printed() {
    assert!(tidegate(&["man"]).ended(0).out.contains(".TH tidegate 1"));
}

#[test]
fn a_run_answers_whether_it_is_alive_and_ready_and_gives_its_numbers() {
    let (_folder, from, to) = shop(SHOP);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut run = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["migrate", "run", "--from", &from, "--to", &to, "--listen", &address])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !get(&address, "/ready").contains("200 OK")
        || !get(&address, "/metrics").contains("rows_crawled_total{table=\"orders\"} 1")
    {
        assert!(Instant::now() < until, "{}", get(&address, "/metrics"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(get(&address, "/health").contains("alive"));
    let metrics = get(&address, "/metrics");
    for name in ["tidegate_lag_seconds", "tidegate_changes_applied_total", "tidegate_table_stopped", "# EOF"]
    {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let taken = std::net::TcpListener::bind(&address).unwrap();
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--listen", &address];
    tidegate(&words).failed(2, &format!("TG0001 config-invalid: cannot listen on {address}"), &[]);
    drop(taken);
}

/// Found by testing: the run had begun by then, and had made tables in the target.
#[test]
fn a_port_that_is_taken_is_told_before_anything_is_made() {
    let (folder, from, to) = shop(SHOP);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--listen", &address];
    let refused =
        tidegate(&words).failed(2, &format!("TG0001 config-invalid: cannot listen on {address}"), &[]);
    assert!(!refused.err.contains("crawling"), "{}", refused.err);
    assert!(!folder.path().join("new.db").exists(), "the target was made");
    let journal = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'tidegate%'";
    assert_eq!(crate::sqlite_rows(&folder.path().join("shop.db"), journal), ["0"]);
}

fn get(address: &str, path: &str) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
    write!(stream, "GET {path} HTTP/1.1\r\nHost: tidegate\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// Found by trying: it was said to have failed, and to go on with thousands of rows a second, while it waited.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_target_is_away_waits_and_has_not_failed() {
    let Some(server) = server(Options::default()).await else { return };
    let to = server.create_database("away").await.unwrap();
    let (folder, from, _) = tokio::task::block_in_place(|| shop(SHOP));
    let applied = |changes: u64| {
        sqlite(&folder.path().join("shop.db"), "UPDATE orders SET v = v || 'x'");
        wait("away", &from, &to, |status| status["tables"][0]["changes_applied"] == changes);
    };
    let runner = Runner::start(&from, &to, &["--name", "away"]);
    tokio::task::block_in_place(|| {
        wait("away", &from, &to, |status| status["state"] == "live");
        applied(1);
    });
    server.kill().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.restart().await.unwrap();
    tokio::task::block_in_place(|| applied(2));
    runner.signal("-TERM");
    let ended = runner.end().ended(7);
    let waiting = ended.err.lines().find(|line| line.starts_with("waiting: ")).unwrap_or_default();
    for word in ["1 of ~1 rows", " 0/s", "lag ", "TG00"] {
        assert!(waiting.contains(word), "{word:?} is not in {waiting:?} of: {}", ended.err);
    }
    assert!(!ended.err.contains("failed"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_stops_before_its_source_is_in_danger() {
    let options = Options::default().with_setting("max_prepared_transactions", 5);
    let Some(server) = server(options).await else { return };
    let from = server.create_database("danger").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    crate::pairs::psql(&from, "CREATE TABLE t (id int PRIMARY KEY, v text)");
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "[limits]\nheld_bytes_max = 1000000\n").unwrap();
    let file = file.to_str().unwrap();
    tokio::task::block_in_place(|| {
        let words = ["-c", file, "migrate", "run", "--from", &from, "--to", &to, "--name", "danger"];
        tidegate(&[&words[..], &["--until", "caught-up"]].concat()).ended(0);
        // A transaction that does not end keeps the log, whatever is applied.
        crate::pairs::psql(&from, "BEGIN; INSERT INTO t VALUES (0); PREPARE TRANSACTION 'held'");
        let write = |from_id: u32| {
            let ids = format!("generate_series({from_id}, {from_id} + 19999)");
            crate::pairs::psql(&from, &format!("INSERT INTO t SELECT i, repeat('x', 1000) FROM {ids} i"));
        };
        write(1);
        // One that begins beyond the bound may catch up, and has the bound once more to do it in.
        let runner = Runner::start(&from, &to, &["--name", "danger", "-c", file]);
        wait("danger", &from, &to, |status| {
            status["running"] == true && status["held"]["bytes"].as_u64() > Some(1_000_000)
        });
        write(20_001);
        runner.end().failed(3, "TG0072 source-in-danger", &["held_bytes", "used_percent"]);
        crate::pairs::psql(&from, "ROLLBACK PREPARED 'held'");
        tidegate(&["migrate", "abort", "--yes", "--from", &from, "--to", &to, "--name", "danger"]).ended(0);
    });
}

/// The figure that an alert looks at.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_grows_while_the_target_is_away() {
    let Some(server) = server(Options::default()).await else { return };
    let to = server.create_database("lag").await.unwrap();
    let (folder, from, _) = tokio::task::block_in_place(|| shop(SHOP));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let runner = crate::runner::Runner::start(&from, &to, &["--listen", &address]);
    let lag = || {
        let metrics = get(&address, "/metrics");
        let line = metrics.lines().find(|line| line.starts_with("tidegate_lag_seconds "));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    let wait = |what: &str, enough: &dyn Fn() -> bool| {
        let until = Instant::now() + Duration::from_secs(60);
        while !enough() {
            assert!(Instant::now() < until, "{what}: {}", get(&address, "/metrics"));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let is_level = || get(&address, "/ready").contains("200 OK") && lag() == Some(0.0);
    tokio::task::block_in_place(|| wait("level", &is_level));
    server.stop().await;
    tokio::task::block_in_place(|| {
        crate::sqlite(&folder.path().join("shop.db"), "INSERT INTO orders VALUES (2, 'b')");
        wait("grows", &|| lag().is_some_and(|lag| lag > 2.0));
    });
    server.restart().await.unwrap();
    tokio::task::block_in_place(|| wait("level again", &is_level));
    runner.signal("-TERM");
    runner.end().ended(7);
}
