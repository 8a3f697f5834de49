//! Commits whose answer does not come, or says that nobody knows.

use mongodb::Client;
use mongodb::bson::{Document, doc};
use tidegate_core::error::Verdict;
use tidegate_core::port::{Batch, Commit, Opened, TableBatch};
use tidegate_core::{Position, Type, Value};
use tidegate_services::mongodb::{Options, Server};
use tidegate_services::{Service, skipped};

use crate::place::{Place, first, flow, route, table};

/// What a try more than the sink makes itself is.
const OFTEN: i32 = 100;

/// What becomes of a commit, and what is true afterwards.
struct Case {
    name: &'static str,
    times: i32,
    fails: Document,
    verdict: Option<Verdict>,
    is_there: bool,
}

fn cases() -> Vec<Case> {
    let commit = |more: Document| {
        let mut data = doc! { "failCommands": ["commitTransaction"] };
        data.extend(more);
        data
    };
    let concern = || doc! { "writeConcernError": { "code": 64, "errmsg": "waiting for members timed out" } };
    let unknown = || doc! { "errorCode": 50, "errorLabels": ["UnknownTransactionCommitResult"] };
    let transient = || doc! { "errorCode": 112, "errorLabels": ["TransientTransactionError"] };
    let case =
        |name, times, fails, verdict, is_there| Case { name, times, fails: commit(fails), verdict, is_there };
    vec![
        case("the connection is lost", 5, doc! { "closeConnection": true }, None, true),
        case("committed, and the members do not say so", 5, concern(), None, true),
        case("nobody knows", 5, unknown(), None, true),
        case("not committed, to be done again", 3, transient(), None, true),
        case(
            "the connection is always lost",
            OFTEN,
            doc! { "closeConnection": true },
            Some(Verdict::Unknown),
            false,
        ),
        case("committed, and the members never say so", OFTEN, concern(), Some(Verdict::Unknown), true),
        case("never committed", OFTEN, transient(), Some(Verdict::Retry), false),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_asked_for_again_and_never_guessed() {
    if skipped(Service::Mongodb) {
        return;
    }
    let options = Options::default().with_argument("--setParameter=enableTestCommands=1");
    let server = Server::start(options).await.unwrap();
    let admin = Client::with_uri_str(server.database_url("admin")).await.unwrap().database("admin");
    for (at, Case { name, times, fails, verdict, is_there }) in cases().into_iter().enumerate() {
        let place = Place::at(&server.database_url(&format!("failing{at}"))).await;
        let way = route(&place.store, &table("items", &[("id", Type::Int { bits: 64 })], &[0])).await;
        let ways = std::slice::from_ref(&way);
        let mut sink = place.store.sink(&flow(), ways).await.unwrap();
        sink.open(&first()).await.unwrap();

        let fail = doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": fails };
        admin.run_command(fail).await.unwrap();
        let mut rows = TableBatch::default();
        rows.upserts.push_values([Value::Int(1)]);
        let position = Position::from_u64(7);
        let commit = Commit { position: Some(position.clone()), ..Commit::default() };
        let applied = sink.apply(&Batch { tables: vec![rows] }, Some(&commit)).await;
        admin.run_command(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
        assert_eq!(applied.err().map(|error| error.verdict()), verdict, "{name}");

        // Whoever comes next learns what happened from the checkpoint, and it is true of the rows.
        let mut next = place.store.sink(&flow(), ways).await.unwrap();
        let Opened::Resumed(checkpoint) = next.open(&first()).await.unwrap() else { panic!("{name}") };
        assert_eq!(checkpoint.position == position, is_there, "{name}");
        assert_eq!(place.all("items").await.len(), usize::from(is_there), "{name}");
        place.end().await;
    }
}
