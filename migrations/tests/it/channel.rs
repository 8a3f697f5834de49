use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::tidegate;

/// A broker in a file, with what a file of channels says.
struct Desk {
    folder: tempfile::TempDir,
}

const CHANNELS: &str = r#"
[[channel]]
name = "orders"
lanes = 2
messages_max = 5000
subscriptions = ["billing", "shipping"]

[[channel]]
name = "audit"
keep = "36h"
"#;

impl Desk {
    fn open() -> Self {
        let desk = Self { folder: tempfile::tempdir().unwrap() };
        desk.write("channels.toml", CHANNELS);
        desk
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.folder.path().join("broker.db").display())
    }

    fn ask(&self, verb: &str, words: &[&str]) -> crate::Outcome {
        tidegate(&[&["channel", verb, "--broker", &self.url()], words].concat())
    }

    fn apply(&self) -> crate::Outcome {
        let file = self.folder.path().join("channels.toml");
        self.ask("apply", &["--file", file.to_str().unwrap()])
    }

    fn tail(&self, words: &[&str]) -> Vec<serde_json::Value> {
        let out = self.ask("tail", &[&["--channel", "orders", "--json"], words].concat()).ended(0).out;
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn channels_are_made_compared_and_listed() {
    let desk = Desk::open();
    let file = desk.folder.path().join("channels.toml");
    let verify = || desk.ask("apply", &["--verify", "--file", file.to_str().unwrap()]);
    desk.write("none.toml", "channel = []");
    let none = desk.folder.path().join("none.toml");
    assert_eq!(
        desk.ask("apply", &["--file", none.to_str().unwrap()]).ended(0).out,
        "everything is there as the file says\n"
    );
    assert_eq!(desk.ask("list", &[]).ended(0).out, "no channels\n");
    let missing = verify().ended(4).out;
    assert!(missing.contains("there is no channel orders"), "{missing}");
    let made = desk.apply().ended(0).out;
    for line in ["made channel orders", "made channel audit", "made subscription billing of orders"] {
        assert!(made.lines().any(|known| known == line), "{made}");
    }
    assert_eq!(desk.apply().ended(0).out, "everything is there as the file says\n");
    assert_eq!(verify().ended(0).out, "everything is there as the file says\n");

    let listed: serde_json::Value =
        serde_json::from_str(&desk.ask("list", &["--json"]).ended(0).out).unwrap();
    assert_eq!(listed[0]["name"], "audit");
    assert_eq!(listed[0]["keep_seconds"], 129_600.0);
    assert_eq!(listed[1]["lanes"], 2);
    assert_eq!(listed[1]["messages_max"], 5_000);
    assert_eq!(listed[1]["subscriptions"], serde_json::json!(["billing", "shipping"]));
    let table = desk.ask("list", &[]).ended(0).out;
    assert!(table.contains("until settled") && table.contains("billing shipping"), "{table}");

    let gone = ["--channel", "orders", "--subscription", "billing"];
    desk.ask("unregister", &gone).failed(
        2,
        "TG0001 config-invalid: the end of a subscription has to be agreed to, and nobody can be asked",
        &["give --yes"],
    );
    let said = desk.ask("unregister", &[&gone[..], &["--yes"]].concat()).ended(0).out;
    assert_eq!(said, "billing of orders is unregistered\n");
    assert!(!desk.ask("list", &[]).ended(0).out.contains("billing"));
    desk.ask("unregister", &[&gone[..], &["--yes"]].concat()).failed(
        3,
        "TG0038 subscription-missing: channel orders has no subscription billing",
        &["nothing was removed"],
    );

    // What is there is not changed.
    desk.write("channels.toml", &CHANNELS.replace("lanes = 2", "lanes = 4"));
    desk.apply().failed(3, "TG0037 channel-differs: channel orders has lanes 2, and 4 is asked for", &[]);
    desk.write("channels.toml", &CHANNELS.replace("36h", "90s"));
    let differs = verify().ended(4).out;
    assert!(differs.contains("channel audit has keep 36h, and 90s is asked for"), "{differs}");
}

#[test]
fn messages_are_published_and_looked_at_without_being_taken() {
    let desk = Desk::open();
    desk.apply().ended(0);
    let body = desk.write("body.json", "{\n \"total\": 12.50}");
    let one = ["--channel", "orders", "--kind", "order.placed", "--subject", "o-1", "--id", "7"];
    let more = ["--header", "region=eu", "--body", &body];
    for _ in 0..2 {
        // Under one id it is one message.
        assert_eq!(desk.ask("publish", &[&one[..], &more].concat()).ended(0).out, "1 published\n");
    }
    let lines = desk.folder.path().join("lines.jsonl");
    let line = |id: u32| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/old","type":"t","subject":"o-1","data":{id}}}"#
        )
    };
    std::fs::write(&lines, format!("{}\n\n{}\n", line(8), line(9))).unwrap();
    let lines = ["--channel", "orders", "--lines", lines.to_str().unwrap()];
    assert_eq!(desk.ask("publish", &lines).ended(0).out, "2 published\n");

    for _ in 0..2 {
        let seen = desk.tail(&[]);
        let ids: Vec<_> = seen.iter().map(|message| message["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["7", "8", "9"], "looking takes nothing");
        assert_eq!(seen[0]["headers"]["region"], "eu");
        assert_eq!(seen[0]["data"]["total"], 12.5);
        assert_eq!(seen[0]["datacontenttype"], "application/json");
    }
    let shown = desk.ask("tail", &["--channel", "orders", "-n", "2"]).ended(0).out;
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("stored lane position id kind subject body"));
    let shown: Vec<Vec<&str>> = lines.map(|line| line.split(' ').collect()).collect();
    assert_eq!(shown.len(), 2);
    assert_eq!(shown[0][3..6], ["7", "order.placed", "o-1"], "{shown:?}");
    // Behind the position of the first there are two.
    assert_eq!(desk.tail(&["--start", shown[0][2]]).len(), 2);
    assert_eq!(desk.tail(&["--start", "latest"]).len(), 0);

    // What is shown can be published elsewhere, by a pipe.
    let all = desk.ask("tail", &["--channel", "orders", "--json"]).ended(0).out;
    let mut copy = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["channel", "publish", "--channel", "audit", "--lines", "-", "--broker", &desk.url()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    copy.stdin.take().unwrap().write_all(all.as_bytes()).unwrap();
    assert_eq!(copy.wait_with_output().unwrap().stdout, b"3 published\n");
    assert_eq!(desk.ask("tail", &["--channel", "audit", "--json"]).ended(0).out, all);
}

#[test]
fn bad_input_of_channels_is_named() {
    let desk = Desk::open();
    for verb in ["list", "tail", "unregister"] {
        let words = if verb == "list" { &[][..] } else { &["--channel", "orders"][..] };
        let words = if verb == "unregister" {
            &["--channel", "orders", "--subscription", "s", "--yes"]
        } else {
            words
        };
        desk.ask(verb, words).failed(
            2,
            "TG0002 url-invalid: there is no database file at",
            &["look at its spelling", "tidegate channel apply"],
        );
    }
    assert!(!desk.folder.path().join("broker.db").exists(), "a misspelt name makes no file");
    desk.write("none.toml", "channel = []");
    desk.ask("apply", &["--file", desk.folder.path().join("none.toml").to_str().unwrap()]).ended(0);
    desk.ask("tail", &["--channel", "orders"]).failed(
        3,
        "TG0036 channel-missing: there is no channel orders",
        &["tidegate channel list"],
    );
    desk.apply().ended(0);
    let bad = desk
        .write("bad.jsonl", "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"s\",\"type\":\"t\"}\n{}\n");
    let lines = ["--channel", "audit", "--lines", &bad];
    desk.ask("publish", &lines).failed(
        1,
        "TG0056 message-invalid: it has no specversion, as a message in one piece has",
        &["line: 2", "published: 0"],
    );
    desk.ask("publish", &["--channel", "audit", "--kind", "t", "--header", "region"]).failed(
        2,
        "TG0001 config-invalid: the header region is not NAME=VALUE",
        &[],
    );
    desk.ask("tail", &["--channel", "audit", "--start", "yesterday"]).failed(
        2,
        "TG0001 config-invalid: \"yesterday\" is no position",
        &[],
    );
    let mended = desk.write("body.json", "mended");
    let publish = ["--channel", "audit", "--kind", "t", "--body", &mended];
    desk.ask("publish", &publish).failed(
        2,
        "TG0001 config-invalid: the body is not application/json: expected value at line 1 column 1",
        &["--content-type"],
    );
    desk.ask("publish", &[&publish[..], &["--content-type", "text/plain"]].concat()).ended(0);
    desk.ask("publish", &["--channel", "audit", "--kind", ""]).failed(
        2,
        "TG0001 config-invalid: the attribute type is empty",
        &[],
    );
    for flag in [["--config", "shop.toml"], ["--name", "shop"], ["--state", "sqlite:state.db"]] {
        desk.ask("list", &flag).failed(
            2,
            &format!("TG0001 config-invalid: {} is of migrations, and nothing here goes by it", flag[0]),
            &["--broker says all"],
        );
    }
    tidegate(&["channel", "list", "--broker", "memory:"]).failed(
        3,
        "TG0030 capability-missing: memory: is within one program, and this is another one",
        &["sqlite:FILE"],
    );
    let wrong = desk.write("wrong.toml", "[[channel]]\nname = \"a\"\nlane = 3\n");
    desk.ask("apply", &["--file", &wrong]).failed(2, "TG0001 config-invalid:", &["unknown field `lane`"]);
}

#[test]
fn the_doctor_looks_at_a_broker_alone() {
    let desk = Desk::open();
    desk.apply().ended(0);
    let out = tidegate(&["doctor", "--broker", &desk.url()]).ended(0).out;
    for part in ["committed to the file", "what is lost when", "use a broker that replicates", "listing"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_as_long_as_was_said_and_named() {
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("nats://127.0.0.1:{}", silent.local_addr().unwrap().port());
    let url = format!("{server}?timeout_ms=60000");
    let began = std::time::Instant::now();
    let failed = tidegate(&["channel", "list", "--broker", &url, "--timeout", "3s"]);
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    failed.failed(
        5,
        "TG0014 timed-out: listing channels was not answered within 3s",
        &["listing channels takes a while", &format!("broker: {server}"), "raise --timeout"],
    );
}

#[test]
fn the_doctor_says_how_a_broker_alone_is_named() {
    tidegate(&["doctor"]).failed(2, "TG0001 config-invalid: --from is missing", &["give --broker URL"]);
}
