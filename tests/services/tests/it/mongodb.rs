use mongodb::Client;
use mongodb::bson::{Document, doc};
use tidegate_services::mongodb::{Options, ReplicaSet, Server, shared};
use tidegate_services::{Service, is_running, skipped};

async fn collection(url: &str) -> mongodb::Collection<Document> {
    Client::with_uri_str(url).await.unwrap().database("shop").collection("orders")
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_and_a_restart() {
    if skipped(Service::Mongodb) {
        return;
    }
    let server = Server::start(Options::default().with_oplog_size_mb(990)).await.unwrap();
    let orders = collection(&server.url()).await;
    orders.insert_many([doc! { "_id": 1 }, doc! { "_id": 2 }]).await.unwrap();
    let (pid, port) = (server.pid().unwrap(), server.port());
    server.kill().await;
    assert!(!is_running(pid));
    server.restart().await.unwrap();
    assert_eq!(server.port(), port);
    let orders = collection(&server.url()).await;
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 2);
    let folder = server.data_folder();
    server.stop().await;
    drop(server);
    assert!(!folder.exists());
}

#[tokio::test]
async fn change_streams_and_transactions_work() {
    let Some(server) = shared().await else { return };
    let url = server.database("streams");
    let client = Client::with_uri_str(&url).await.unwrap();
    let database = client.default_database().unwrap();
    let orders = database.collection::<Document>("orders");
    orders.insert_one(doc! { "_id": 0 }).await.unwrap();
    let mut stream = orders.watch().await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    orders.insert_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
    let event = loop {
        if let Some(event) = stream.next_if_any().await.unwrap() {
            break event;
        }
    };
    assert_eq!(event.full_document.unwrap(), doc! { "_id": 1 });
}

#[tokio::test]
async fn a_set_of_three_elects_another_primary() {
    if skipped(Service::Mongodb) {
        return;
    }
    let set = ReplicaSet::start(3, Options::default()).await.unwrap();
    let orders = collection(&set.url()).await;
    orders.insert_one(doc! { "_id": 1 }).await.unwrap();
    let first = set.primary().await.unwrap();
    let second = set.step_down().await.unwrap();
    assert_ne!(first, second);
    assert_eq!(set.kill_primary().await.unwrap(), second);
    let third = set.primary().await.unwrap();
    assert_ne!(third, second);
    orders.insert_one(doc! { "_id": 2 }).await.unwrap();
    set.restart(second).await.unwrap();
    assert_eq!(orders.count_documents(doc! {}).await.unwrap(), 2);
}
