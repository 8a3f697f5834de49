//! What users get wrong: each has its text, its exit status, and changes nothing.

use rstest::rstest;

use tidegate_services::postgres::Options;

use crate::operating::server;
use crate::{shop, sqlite, tidegate};

const ORDERS: &str =
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO orders VALUES (1, 'a')";

#[rstest]
#[case::no_source(&["plan", "--to", "sqlite:x.db"], 2, "TG0001 config-invalid: --from is missing", "hint: give --from URL")]
#[case::no_scheme(&["plan", "--from", "shop.db", "--to", "sqlite:x.db"], 2, "TG0002 url-invalid: a URL needs a scheme", "")]
#[case::unknown_scheme(&["plan", "--from", "oracle://h/d", "--to", "sqlite:x.db"], 2, "TG0002 url-invalid: no store has the scheme oracle:", "known: mongodb: mongodb+srv: postgres: postgresql: sqlite:")]
#[case::unset_variable(&["plan", "--from", "postgres://u:${TIDEGATE_NO_SUCH}@h/d", "--to", "sqlite:x.db"], 2, "TG0002 url-invalid: the environment variable TIDEGATE_NO_SUCH is not set", "")]
#[case::bad_name(&["--name", "Shop 1", "plan", "--from", "sqlite:a.db", "--to", "sqlite:b.db"], 2, "TG0001 config-invalid: the name \"Shop 1\" cannot be used", "hint: a name is")]
#[case::bad_conversion(&["plan", "--from", "sqlite:a.db", "--to", "sqlite:b.db", "--convert", "interval"], 2, "TG0001 config-invalid: --convert interval is not TYPE=FORM", "")]
#[case::empty_name(&["plan", "--from", "sqlite:a.db", "--to", "sqlite:b.db", "--map", "orders="], 2, "TG0001 config-invalid: \"\" is no name of a table", "")]
#[case::no_schema(&["plan", "--from", "sqlite:a.db", "--to", "sqlite:b.db", "--table", ".orders"], 2, "TG0001 config-invalid: \".orders\" is no name of a table", "")]
#[case::unknown_error(&["explain", "lost"], 2, "TG0001 config-invalid: there is no error \"lost\"", "perhaps connection-lost or slot-lost")]
fn words_that_cannot_be_followed(
    #[case] words: &[&str],
    #[case] status: i32,
    #[case] error: &str,
    #[case] more: &str,
) {
    tidegate(words).failed(status, error, &[more]);
}

#[test]
fn a_flag_that_does_not_exist_is_named_with_its_neighbour() {
    let answer = tidegate(&["plan", "--form", "sqlite:a.db"]).ended(2);
    assert!(answer.err.contains("unexpected argument '--form'"), "{}", answer.err);
    assert!(answer.err.contains("--from"), "{}", answer.err);
}

/// Found by trying: `abort --table a` removed the whole migration, and other verbs took what they did not go by.
#[rstest]
#[case::abort(&["abort", "--yes"], &["--table a", "--exclude a", "--map a=x", "--convert x=string", "--allow-non-empty"])]
#[case::source_only(&["abort", "--yes", "--source-only"], &["--table a", "--via memory:"])]
#[case::status(&["status"], &["--table nosuch", "--exclude a", "--transform x", "--via memory:"])]
#[case::pause(&["pause"], &["--exclude a", "--map a=x", "--convert x=string"])]
#[case::resume(&["resume"], &["--exclude a", "--allow-non-empty"])]
#[case::skip(&["skip", "--table", "a"], &["--exclude b", "--map a=x", "--transform x"])]
#[case::recopy(&["recopy", "--table", "a"], &["--exclude b", "--map a=x", "--transform x", "--convert x=string"])]
#[case::set(&["set", "max_rate=5"], &["--table a", "--exclude a"])]
#[case::verify(&["verify"], &["--allow-non-empty", "--via memory:"])]
fn a_flag_that_a_verb_does_not_go_by_is_refused(#[case] verb: &[&str], #[case] flags: &[&str]) {
    let (_folder, from, to) =
        shop("CREATE TABLE a (id INTEGER PRIMARY KEY); CREATE TABLE b (id INTEGER PRIMARY KEY)");
    let go = |words: &[&str]| {
        tidegate(&[&["--name", "flags", "migrate"], words, &["--from", &from, "--to", &to]].concat())
    };
    go(&["run", "--until", "caught-up"]).ended(0);
    for flag in flags {
        let words: Vec<_> = verb.iter().copied().chain(flag.split(' ')).collect();
        let answer = go(&words).ended(2);
        assert!(answer.err.contains(words[verb.len()]), "{}", answer.err);
    }
    let status = go(&["status"]).ended(0);
    assert!(
        status.out.contains("throttle: nobody runs it") && status.out.contains("verified: not yet"),
        "{}",
        status.out
    );
}

#[rstest]
#[case::unknown_key("[source]\nurll = \"sqlite:a.db\"", &["line 2", "urll", "url"])]
#[case::wrong_type("[copy]\nworkers = \"two\"", &["line 2", "workers"])]
#[case::no_workers("[copy]\nworkers = 0", &["line 2", "workers is a number from 1 to 64"])]
#[case::many_workers("[copy]\nworkers = 100000", &["line 2", "workers is a number from 1 to 64"])]
#[case::no_rows("[copy]\nchunk_rows = 0", &["line 2", "nonzero"])]
#[case::no_bytes("[copy]\nchunk_bytes = 0", &["line 2", "nonzero"])]
#[case::no_changes("[copy]\nbatch_changes = 0", &["line 2", "nonzero"])]
#[case::bad_name("[run]\nname = \"Shop-1\"", &["the name \"Shop-1\" cannot be used"])]
#[case::no_name("[[map]]\ntable = \"orders\"\nto = \"\"", &["\"\" is no name of a table"])]
#[case::not_toml("[source\nurl = 1", &["line 1"])]
fn a_configuration_that_is_wrong_shows_the_place(#[case] text: &str, #[case] words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.toml");
    std::fs::write(&file, text).unwrap();
    tidegate(&["-c", file.to_str().unwrap(), "config", "check"]).failed(2, "TG0001 config-invalid", words);
}

#[test]
fn a_configuration_that_is_right_says_so_and_has_a_schema() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.toml");
    let text = "[source]\nurl = \"sqlite:a.db\"\ntables = [\"orders\"]\n[copy]\nworkers = 2\nchunk_bytes = 1048576\n";
    std::fs::write(&file, text).unwrap();
    let answer = tidegate(&["-c", file.to_str().unwrap(), "config", "check"]).ended(0);
    assert!(answer.out.ends_with("is valid\n"));
    let schema = tidegate(&["config", "schema"]).ended(0).json();
    assert!(schema["properties"]["source"].is_object());
    let copy = &schema["$defs"]["Copy"]["properties"];
    assert_eq!(copy["chunk_bytes"]["description"], "Bytes a chunk has at most, but for its last row.");
}

/// Found by trying: nothing stood in the plan's way, and the run found no folder.
#[test]
fn a_target_in_a_folder_that_is_not_there_is_refused_by_the_plan() {
    let (folder, from, _) = shop(ORDERS);
    let to = format!("sqlite:{}", folder.path().join("nowhere/new.db").display());
    let said = "TG0002 url-invalid: there is no folder";
    let plan = tidegate(&["plan", "--from", &from, "--to", &to]).ended(3);
    assert!(plan.out.contains(said) && plan.out.contains("make the folder first"), "{}", plan.out);
    tidegate(&["migrate", "run", "--from", &from, "--to", &to]).failed(
        2,
        said,
        &["hint: make the folder first"],
    );
}

#[test]
fn a_missing_file_or_table_is_named() {
    let (_folder, from, to) = shop(ORDERS);
    let missing = from.replace("shop.db", "nowhere.db");
    let answer = tidegate(&["--timeout", "1s", "plan", "--from", &missing, "--to", &to]);
    assert!(answer.status == 2 || answer.status == 3, "{answer:?}");
    assert!(answer.err.contains("nowhere.db"), "{answer:?}");
    let answer = tidegate(&["plan", "--from", &from, "--to", &to, "--table", "order"]).ended(3);
    assert!(answer.out.contains("TG0020 table-missing"), "{}", answer.out);
}

#[test]
fn a_table_without_a_key_is_refused_and_nothing_is_changed() {
    let (_folder, from, to) = shop("CREATE TABLE log (line TEXT); INSERT INTO log VALUES ('x')");
    let answer = tidegate(&["plan", "--from", &from, "--to", &to]).ended(3);
    assert!(answer.out.contains("refused: log: TG0021 key-missing"), "{}", answer.out);
    tidegate(&["migrate", "run", "--from", &from, "--to", &to, "--until", "caught-up"]).failed(
        3,
        "TG0021 key-missing",
        &["table: log"],
    );
}

/// Found by trying: both were accepted, and did nothing.
#[test]
fn a_conversion_that_cannot_be_followed_is_refused() {
    let (folder, from, _) =
        shop("CREATE TABLE t (id INTEGER PRIMARY KEY, n TEXT); INSERT INTO t VALUES (1, 'a')");
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    for verb in [&["plan"][..], &["migrate", "run", "--until", "caught-up"]] {
        let words = [verb, &["--from", &from, "--to", &to, "--convert", "intervall=string"]].concat();
        let answer = tidegate(&words).ended(if verb.len() == 1 { 3 } else { 2 });
        let said = answer.out + &answer.err;
        assert!(said.contains("TG0003 mapping-invalid: the conversion of intervall is of no use"), "{said}");
    }
    assert!(!folder.path().join("new.db").exists());
}

/// Found by trying: the name was refused by the server, in the middle of a run.
#[test]
fn a_name_that_the_target_keeps_for_itself_is_refused() {
    let (_folder, from, to) = shop(ORDERS);
    for name in ["sqlite_orders", "Tidegate_orders"] {
        let answer =
            tidegate(&["plan", "--from", &from, "--to", &to, "--map", &format!("orders={name}")]).ended(3);
        let words = format!("TG0003 mapping-invalid: a table cannot have the name {name}");
        assert!(answer.out.contains(&words), "{}", answer.out);
    }
}

/// Found by a newcomer: a table could be left out only by naming all others.
#[test]
fn tables_can_be_left_out() {
    let (folder, from, to) = shop(&format!("{ORDERS}; CREATE TABLE keyless (v TEXT)"));
    let words = |exclude: &str| ["--from", &from, "--to", &to, "--exclude", exclude].map(str::to_owned);
    let verb = |verb: &[&str], exclude: &str| {
        let words = words(exclude);
        tidegate(&[verb, &words.each_ref().map(String::as_str)].concat())
    };
    let refused = verb(&["plan"], "orders").ended(3);
    assert!(refused.out.contains("or leave the table out (--exclude)"), "{}", refused.out);
    let refused = verb(&["plan"], "nothing").ended(3);
    assert!(
        refused.out.contains("nothing cannot be left out: the source has no such table"),
        "{}",
        refused.out
    );
    verb(&["migrate", "run", "--until", "verified"], "keyless").ended(0);
    // The migration knows its tables.
    tidegate(&["migrate", "verify", "--from", &from, "--to", &to]).ended(0);
    drop(folder);
}

#[test]
fn a_source_without_wal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    sqlite(&file, "PRAGMA journal_mode = DELETE");
    sqlite(&file, ORDERS);
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let answer = tidegate(&["plan", "--from", &url("shop.db"), "--to", &url("new.db")]);
    assert_eq!(answer.status, 3, "{answer:?}");
    assert!((answer.out + &answer.err).contains("TG0028 journal-mode"));
}

#[test]
fn a_target_with_rows_or_other_columns_is_refused() {
    let (folder, from, to) = shop(ORDERS);
    let new = folder.path().join("new.db");
    sqlite(&new, "PRAGMA journal_mode = WAL");
    sqlite(&new, ORDERS);
    let words = ["migrate", "run", "--from", &from, "--to", &to, "--until", "caught-up"];
    tidegate(&words).failed(3, "TG0024 target-not-empty", &["orders"]);
    tidegate(&[&words[..], &["--allow-non-empty"]].concat()).ended(0);

    sqlite(&new, "DROP TABLE orders; CREATE TABLE orders (id INTEGER PRIMARY KEY, remark TEXT)");
    let other = tidegate(&[&["--name", "other"], &words[..], &["--allow-non-empty"]].concat());
    other.failed(3, "TG0023 target-differs", &["orders"]);
}

/// Found by trying: the plan said that the type was another one, and not which one it wanted.
#[tokio::test(flavor = "multi_thread")]
async fn the_type_that_is_there_and_the_wanted_one_are_named() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    let (from, to) =
        (server.create_database("types").await.unwrap(), server.create_database("types").await.unwrap());
    crate::pairs::psql(&from, "CREATE TABLE t (id bigint PRIMARY KEY, v text)");
    crate::pairs::psql(&to, "CREATE TABLE t (id integer PRIMARY KEY, v text)");
    tokio::task::block_in_place(|| {
        let (folder, file, new) = shop("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)");
        sqlite(&folder.path().join("new.db"), "CREATE TABLE t (id INTEGER PRIMARY KEY, v BLOB)");
        for (from, to, said) in [
            (&from, &to, "the column is integer there, which does not keep every value of bigint as it is"),
            (&file, &new, "table t has the type BLOB for v, and not TEXT"),
        ] {
            let plan = tidegate(&["plan", "--from", from, "--to", to]).ended(3);
            assert!(plan.out.contains(said), "{said:?} is not in: {}", plan.out);
            tidegate(&["migrate", "run", "--from", from, "--to", to]).failed(3, "TG0023", &[said]);
        }
    });
}

#[test]
fn verbs_for_a_migration_that_does_not_exist_say_so() {
    let (_folder, from, to) = shop(ORDERS);
    for verb in ["status", "pause", "resume"] {
        let answer = tidegate(&["migrate", verb, "--from", &from, "--to", &to]);
        answer.failed(3, "TG0031 state-missing: there is no migration shop_to_new", &["hint: "]);
    }
    let answer = tidegate(&["migrate", "abort", "--from", &from, "--to", &to]);
    answer.failed(2, "TG0001 config-invalid: an abort has to be agreed to", &["hint: give --yes"]);
    let answer = tidegate(&["migrate", "abort", "--yes", "--from", &from, "--to", &to]);
    answer.failed(3, "TG0031 state-missing: there is no migration shop_to_new", &["check --name"]);
}

#[test]
fn an_error_is_also_a_json_document() {
    let answer = tidegate(&["--json", "plan", "--from", "oracle://h/d", "--to", "sqlite:x.db"]).ended(2);
    let document = answer.json();
    assert_eq!(document["error"]["code"], "TG0002");
    assert_eq!(document["error"]["exit"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_fails_at_once_and_is_never_shown() {
    let Some(server) = server(Options::default().with_password("right")).await else { return };
    let Some(documents) = tidegate_services::mongodb::shared().await else { return };
    let postgres = server.create_database("shop").await.unwrap().replace("right", "wr0ng-secret");
    let mongodb = documents.database("shop").replace("mongodb://", "mongodb://mover:wr0ng-secret@");
    tokio::task::block_in_place(|| {
        for url in [postgres, mongodb] {
            for ends in
                [["--from", &url, "--to", "sqlite:new.db"], ["--from", "sqlite:shop.db", "--to", &url]]
            {
                let began = std::time::Instant::now();
                let answer = tidegate(&[&["--timeout", "60s", "migrate", "run"], &ends[..]].concat());
                // The side that is asked first may be the other one, which is not there.
                if !answer.err.contains("shop.db") {
                    answer.failed(1, "TG0011 access-denied", &["more: tidegate explain access-denied"]);
                }
                assert!(began.elapsed() < std::time::Duration::from_secs(30), "it was waited for");
            }
            let answer = tidegate(&["-v", "plan", "--from", &url, "--to", "sqlite:new.db"]);
            assert!(!(answer.out + &answer.err).contains("wr0ng"), "the password is shown");
        }
    });
}

#[test]
fn a_server_that_is_down_is_waited_for_and_then_ends_with_5() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for url in [
        format!("postgres://u@127.0.0.1:{free}/d"),
        format!("mongodb://127.0.0.1:{free}/d?serverSelectionTimeoutMS=500"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let to = format!("sqlite:{}", folder.path().join("new.db").display());
        let answer = tidegate(&["--timeout", "2s", "migrate", "run", "--from", &url, "--to", &to]);
        answer.failed(5, "TG0010 unreachable", &["waiting up to 2 s", "127.0.0.1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_up_while_it_is_waited_for_is_used() {
    let Some(server) = server(Options::default()).await else { return };
    let url = server.create_database("shop").await.unwrap();
    crate::pairs::psql(&url, "CREATE TABLE t (id int PRIMARY KEY)");
    server.kill().await;
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    let words = ["--timeout", "60s", "migrate", "run", "--until", "caught-up", "--from", &url, "--to", &to];
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(words)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    server.restart().await.unwrap();
    let answer = tokio::task::block_in_place(|| crate::Outcome::of(run.wait_with_output().unwrap())).ended(0);
    assert!(answer.err.contains("waiting up to 60 s"), "{}", answer.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_slot_left_is_named_and_nothing_is_left_behind() {
    let Some(server) = server(Options::default().with_setting("max_replication_slots", 1)).await else {
        return;
    };
    let url = server.create_database("shop").await.unwrap();
    crate::pairs::psql(&url, "CREATE TABLE t (id int PRIMARY KEY)");
    let folder = tempfile::tempdir().unwrap();
    let to = format!("sqlite:{}", folder.path().join("new.db").display());
    let run = || {
        tokio::task::block_in_place(|| {
            tidegate(&["migrate", "run", "--until", "caught-up", "--from", &url, "--to", &to])
        })
    };
    // The plan finds the first; one of ours only the capture. Found by trying: the next run took the slot for lost.
    for slot in ["mine", "tidegate_another"] {
        crate::pairs::psql(&url, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        run().failed(3, "TG0026 slot-unavailable", &["max_replication_slots"]);
        crate::pairs::psql(&url, &format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
    run().ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mongodb_without_a_replica_set_is_refused_on_either_side() {
    if tidegate_services::mongodb::shared().await.is_none() {
        return;
    }
    let options = tidegate_services::mongodb::Options::default().with_no_replica_set();
    let server = tidegate_services::mongodb::Server::start(options).await.unwrap();
    let url = format!("mongodb://127.0.0.1:{}/shop?directConnection=true", server.port());
    let (_folder, from, to) = std::thread::spawn(|| shop(ORDERS)).join().unwrap();
    tokio::task::block_in_place(|| {
        for ends in [["--from", &url, "--to", &to], ["--from", &from, "--to", &url]] {
            let answer = tidegate(&[&["migrate", "run"], &ends[..]].concat());
            answer.failed(3, "TG0027 replica-set-required", &["rs.initiate()"]);
        }
    });
}

#[test]
fn every_error_has_its_page() {
    let answer = tidegate(&["explain", "slot-lost"]).ended(0);
    assert!(answer.out.starts_with("# TG0040 slot-lost\n"), "{}", answer.out);
    assert_eq!(tidegate(&["explain", "tg0040"]).ended(0).out, answer.out);
    assert!(tidegate(&["explain"]).ended(0).out.contains("TG0040 slot-lost\n"));
}
