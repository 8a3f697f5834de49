//! Of ActiveMQ Classic.

use tidegate_core::port::Settled;

use super::*;

async fn server(options: Options) -> Option<Server> {
    server_of(Service::Activemq, options).await
}

/// Why a channel cannot be made.
async fn unmade(broker: &dyn Broker, channel: &Channel) -> Error {
    broker.apply(&Topology::of(channel), Apply::Create).await.unwrap_err()
}

#[tokio::test]
async fn who_may_not_come_in_is_told_why() {
    let Some(server) = server(Options::default().with_password("secret")).await else { return };
    let probed = open(&server.url()).probe().await.unwrap();
    assert!(
        probed.version == "ActiveMQ Classic, broker tidegate"
            && probed.warnings.is_empty()
            && probed.notes.is_empty(),
        "{probed:?}"
    );
    for user in ["user:guess@", "nobody:guess@", ""] {
        let error = refused(&format!("activemq://{user}127.0.0.1:{}", server.port())).await;
        assert_eq!((error.code(), error.verdict()), (code::ACCESS_DENIED, Verdict::Never), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_without_statistics_is_told_what_it_lacks() {
    let Some(server) = server(Options::default().with_setting("statistics", false)).await else { return };
    let error = refused(&format!("{}&timeout_ms=1000", server.url())).await;
    assert_eq!((error.code(), error.verdict()), (code::CONFIG_INVALID, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "the server answers nothing about its queues");
    assert!(error.hint_text().unwrap().contains("<statisticsBrokerPlugin/>"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_copies_nothing_carries_no_channel() {
    let Some(server) = server(Options::default().with_setting("useVirtualTopics", false)).await else {
        return;
    };
    let error = unmade(&*open(&server.url()), &Channel::new("orders").unwrap()).await;
    assert_eq!((error.code(), error.verdict()), (code::CONFIG_INVALID, Verdict::Never), "{error:?}");
    assert_eq!(error.message(), "the server copies nothing from virtual topics to the queues that listen");
}

/// The server forgets queues that never had a message: what was published behind its restart was copied nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_nobody_read_yet_is_there_behind_a_restart() {
    let Some(server) = server(Options::default()).await else { return };
    let (channel, subscription) = channel(&*open(&server.url()), "quiet").await;
    server.kill().await;
    server.restart().await.unwrap();
    let broker = open(&server.url());
    publish(&*broker, &channel, 0..20).await;
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    assert_eq!(numbers(&take(&mut *consumer, 20).await), (0..20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_queues_cannot_be_removed_is_said_and_a_second_try_does_it() {
    let Some(server) = server(Options::default()).await else { return };
    let broker = open(&format!("activemq://127.0.0.1:{}?openwire=1", server.port()));
    let (channel, subscription) = channel(&*broker, "removed").await;
    let error = broker.unregister(&subscription).await.unwrap_err();
    assert_eq!(error.code(), code::UNREACHABLE, "{error:?}");
    assert!(error.message().starts_with("port 1 of the server does not answer"), "{error:?}");
    assert!(error.hint_text().unwrap().contains("?openwire=61616"), "{error:?}");
    // Where it is the server says by itself.
    let broker = open(&format!("activemq://127.0.0.1:{}", server.port()));
    broker.unregister(&subscription).await.unwrap();
    let sent = broker.producer(&channel).await.unwrap().publish(&messages(0..1)).await;
    assert!(
        matches!(&sent[..], [Sent::Refused(error)] if error.code() == code::SUBSCRIPTION_MISSING),
        "{sent:?}"
    );
}

/// With `sendFailIfNoSpace`: without it the server leaves a whole connection unanswered.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_short_of_disk_is_told_so() {
    let Some(server) = server(Options::default().with_setting("store", 24 << 20)).await else { return };
    let broker = open(&format!("{}&timeout_ms=1000&patience_ms=1000", server.url()));
    let (channel, subscription) = channel(&*broker, "short").await;
    let mut producer = broker.producer(&channel).await.unwrap();
    let large = |number| messages(number..number + 1).remove(0).with_data("text/plain", vec![b'x'; 1 << 20]);
    let mut stored = 0;
    let error = loop {
        assert!(stored < 100, "it has no end");
        match producer.publish(&[large(stored)]).await.remove(0) {
            Sent::Stored { .. } => stored += 1,
            other => break other,
        }
    };
    assert!(matches!(&error, Sent::Refused(error) if error.code() == code::LIMIT_REACHED), "{error:?}");
    // Who comes now can have what is there, though nothing can be noted of it.
    let mut consumer = broker.subscribe(&subscription).await.unwrap();
    let came = take(&mut *consumer, usize::try_from(stored).unwrap()).await;
    let acks: Vec<_> = came.iter().map(|delivery| (delivery.token, Settlement::Ack)).collect();
    let settled = consumer.settler().settle(&acks).await;
    assert!(settled.iter().all(Settled::is_done), "{settled:?}");
}
