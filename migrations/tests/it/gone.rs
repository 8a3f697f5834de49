//! A table of the target that somebody removes stops by name, and can be copied anew; the others go on.

use mongodb::Client;
use mongodb::bson::Document;

use crate::columns::verb;
use crate::pairs::psql;
use crate::{shop, sqlite};

const SHOP: &str =
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c');
    CREATE TABLE u (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO u VALUES (1, 'a')";

/// `remove` takes the target's table `t` away.
fn stops_by_name_and_is_copied_anew(to: Option<&str>, remove: impl Fn(&std::path::Path)) {
    let (folder, from, own) = shop(SHOP);
    let to = to.unwrap_or(&own);
    let go = |words: &[&str]| verb("gone", &from, to, words);
    go(&["run", "--until", "verified"]).ended(0);
    remove(folder.path());
    for value in ["d", "e"] {
        let update =
            format!("UPDATE t SET v = '{value}' WHERE id = 1; UPDATE u SET v = '{value}' WHERE id = 1");
        sqlite(&folder.path().join("shop.db"), &update);
        let error =
            "TG0020 table-missing: table t stopped: the target's table is gone, or another one has its name";
        go(&["run", "--until", "caught-up"]).failed(1, error, &["hint: tidegate migrate recopy --table t"]);
        let compared = go(&["verify", "--table", "u"]).ended(4).out;
        assert!(compared.contains("not compared: t stopped"), "{compared}");
        assert!(compared.contains("1 rows compared: 0 missing, 0 extra, 0 different"), "{compared}");
    }
    assert!(go(&["status"]).ended(0).out.contains("TG0020 table-missing"));
    go(&["recopy", "--table", "t"]).ended(0);
    go(&["run", "--until", "verified"]).ended(0);
    go(&["verify"]).ended(0);
}

#[test]
fn a_table_of_a_file() {
    stops_by_name_and_is_copied_anew(None, |folder| sqlite(&folder.join("new.db"), "DROP TABLE t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_a_server() {
    let Some(server) = tidegate_services::postgres::shared().await else { return };
    for remove in [
        "DROP TABLE t",
        "DROP TABLE t; CREATE TABLE t (id int8 PRIMARY KEY, v text)",
        "ALTER TABLE t RENAME TO s",
    ] {
        let to = server.create_database("gone").await.unwrap();
        tokio::task::block_in_place(|| stops_by_name_and_is_copied_anew(Some(&to), |_| psql(&to, remove)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection() {
    let Some(server) = tidegate_services::mongodb::shared().await else { return };
    for is_made_anew in [false, true] {
        let to = server.database("gone");
        let remove = async || {
            let client = Client::with_uri_str(&to).await.unwrap();
            let database = client.default_database().unwrap();
            database.collection::<Document>("t").drop().await.unwrap();
            if is_made_anew {
                database.create_collection("t").await.unwrap();
            }
            client.shutdown().await;
        };
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            stops_by_name_and_is_copied_anew(Some(&to), |_| handle.block_on(remove()));
        });
    }
}
