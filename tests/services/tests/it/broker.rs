//! The brokers, spoken to over bare sockets: no client library stands between the server and what is asserted.
//!
//! A broker's tests run when its service is in use. Until the test command starts it, that is by hand:
//! `TIDEGATE_USE=redis,kafka cargo test -p tidegate-services`, which fetches what is not installed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use tidegate_services::broker::{Broker, Options, Server, shared};
use tidegate_services::{Error, is_running, skipped};

/// What is said to a server, and what has to be in its answer.
type Say = (Vec<u8>, &'static str);

/// Gives the connection back, still open, with the answer up to the end of what was expected.
fn ask(port: u16, (request, expected): &Say) -> (TcpStream, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request).unwrap();
    let (mut answer, mut part) = (String::new(), [0; 4096]);
    while !answer.contains(expected) {
        match stream.read(&mut part) {
            // Each byte as a character: the binary protocols are compared as they are.
            Ok(count @ 1..) => answer.extend(part[..count].iter().map(|byte| char::from(*byte))),
            Ok(_) | Err(_) => panic!("expected {expected:?}, the server said {answer:?}"),
        }
    }
    (stream, answer)
}

/// What `first` made is there for `again` after a crash, at the same port.
async fn survives(broker: Broker, port: fn(&Server) -> u16, first: &[Say], again: Say) {
    if skipped(broker.service()) {
        return;
    }
    let server = Server::start(broker, Options::default()).await.unwrap();
    let port = port(&server);
    let connected: Vec<_> = first.iter().map(|say| ask(port, say)).collect();
    let (pid, url, folder) = (server.pid().unwrap(), server.url(), server.data_folder());
    server.kill().await;
    assert!(!is_running(pid));
    assert_eq!(server.pid(), None);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    server.restart().await.unwrap();
    drop(connected);
    assert_eq!(server.url(), url);
    ask(port, &again);

    server.pause().await;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(&again.0).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "a paused server says nothing");
    drop(stream);
    server.resume().await;
    ask(port, &again);

    server.stop().await;
    assert_eq!(server.pid(), None);
    drop(server);
    assert!(!folder.exists());
}

/// Who does not know the password gets nowhere; it is `secret`.
async fn refuses(broker: Broker, port: fn(&Server) -> u16, stranger: Say, friend: Say) {
    if skipped(broker.service()) {
        return;
    }
    let server = Server::start(broker, Options::default().with_password("secret")).await.unwrap();
    assert!(server.url().contains(":secret@"), "{}", server.url());
    ask(port(&server), &stranger);
    ask(port(&server), &friend);
}

/// As [`refuses`], where the server hangs up instead of the answer that a friend has.
async fn hangs_up_on(broker: Broker, stranger: &[u8], friend: Say) {
    if skipped(broker.service()) {
        return;
    }
    let server = Server::start(broker, Options::default().with_password("secret")).await.unwrap();
    assert!(server.url().contains(":secret@"), "{}", server.url());
    let (mut stream, _) = ask(server.port(), &say("", ""));
    stream.write_all(stranger).unwrap();
    let (mut answer, mut byte) = (String::new(), [0]);
    while let Ok(1) = stream.read(&mut byte) {
        answer.push(char::from(byte[0]));
    }
    assert!(!answer.contains(friend.1), "{answer:?}");
    ask(server.port(), &friend);
}

fn say(request: impl Into<Vec<u8>>, expected: &'static str) -> Say {
    (request.into(), expected)
}

#[tokio::test]
async fn redis_keeps_what_it_acknowledged() {
    let first = [say("SET order 7\r\n", "+OK\r\n")];
    survives(Broker::Redis, Server::port, &first, say("GET order\r\n", "$1\r\n7\r\n")).await;
}

#[tokio::test]
async fn redis_asks_for_the_password() {
    let friend = say("AUTH secret\r\nPING\r\n", "+PONG");
    refuses(Broker::Redis, Server::port, say("PING\r\n", "-NOAUTH"), friend).await;
}

#[tokio::test]
async fn redis_takes_a_setting() {
    if skipped(Broker::Redis.service()) {
        return;
    }
    let options = Options::default().with_setting("maxmemory", "64mb");
    let server = Server::start(Broker::Redis, options).await.unwrap();
    ask(server.port(), &say("CONFIG GET maxmemory\r\n", "67108864"));
}

/// It has a certificate by an authority of its own; `greeting` is said in plain text.
async fn speaks_tls(broker: Broker, scheme: &str, greeting: &'static str) {
    if skipped(broker.service()) {
        return;
    }
    let server = Server::start(broker, Options::default().with_tls()).await.unwrap();
    assert!(server.url().starts_with(scheme), "{}", server.url());
    let authority = std::fs::read_to_string(server.authority_certificate().unwrap()).unwrap();
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"));
    let (mut stream, _) = ask(server.port(), &say("", greeting));
    stream.write_all(b"PING\r\n").unwrap();
    let mut answer = Vec::new();
    let _reset_or_closed = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("PONG"), "{answer:?}");
}

#[tokio::test]
async fn redis_speaks_tls_where_asked() {
    speaks_tls(Broker::Redis, "rediss://", "").await;
}

#[tokio::test]
async fn nats_speaks_tls_where_asked() {
    speaks_tls(Broker::Nats, "tls://", "\"tls_required\":true").await;
}

#[tokio::test]
async fn rabbitmq_speaks_tls_where_asked() {
    speaks_tls(Broker::Rabbitmq, "amqps://", "").await;
}

/// Frames of AMQP 0.9.1: each with its channel and method, up to an open connection.
fn amqp_login(password: &str) -> Vec<u8> {
    let login = format!("\0guest\0{password}");
    let start =
        [&b"\0\0\0\0\x05PLAIN\0\0\0"[..], &[login.len() as u8], login.as_bytes(), b"\x05en_US"].concat();
    let mut bytes = b"AMQP\0\0\x09\x01".to_vec();
    bytes.extend(amqp_frame(0, 10, 11, &start));
    bytes.extend(amqp_frame(0, 10, 31, &[0, 16, 0, 0, 0x20, 0, 0, 0]));
    bytes.extend(amqp_frame(0, 10, 40, b"\x01/\0\0"));
    bytes
}

fn amqp_frame(channel: u8, class: u8, method: u8, arguments: &[u8]) -> Vec<u8> {
    let length = [0, 0, 0, arguments.len() as u8 + 4];
    [&[1, 0, channel], &length[..], &[0, class, 0, method], arguments, &[0xce]].concat()
}

/// Declares the durable queue `orders`, or only asks whether it is there.
fn amqp_queue(passive: bool) -> Say {
    let bits = if passive { 1 } else { 2 };
    let declare = [&b"\0\0\x06orders"[..], &[bits, 0, 0, 0, 0]].concat();
    let frames = [amqp_login("guest"), amqp_frame(1, 20, 10, b"\0"), amqp_frame(1, 50, 10, &declare)];
    say(frames.concat(), "\0\x32\0\x0b\x06orders")
}

#[tokio::test]
async fn rabbitmq_keeps_a_durable_queue() {
    survives(Broker::Rabbitmq, Server::port, &[amqp_queue(false)], amqp_queue(true)).await;
}

#[tokio::test]
async fn rabbitmq_asks_for_the_password() {
    let friend = say(amqp_login("secret"), "\0\x0a\0\x29");
    hangs_up_on(Broker::Rabbitmq, &amqp_login("guess"), friend).await;
}

/// Publishes with a subject for the answer.
fn nats(subject: &str, body: &str, expected: &'static str) -> Say {
    let publish = format!("PUB {subject} answer {}\r\n{body}\r\n", body.len());
    say(format!("CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\n{publish}"), expected)
}

#[tokio::test]
async fn nats_keeps_a_stored_message() {
    let stream = r#"{"name":"orders","subjects":["orders"]}"#;
    let create = nats("$JS.API.STREAM.CREATE.orders", stream, "\"did_create\":true");
    let publish = nats("orders", "hello", "\"seq\":1");
    let again = nats("$JS.API.STREAM.MSG.GET.orders", r#"{"seq":1}"#, "aGVsbG8=");
    survives(Broker::Nats, Server::port, &[create, publish], again).await;
}

#[tokio::test]
async fn nats_asks_for_the_password() {
    let login = |password| format!("CONNECT {{\"user\":\"user\",\"pass\":\"{password}\"}}\r\nPING\r\n");
    let stranger = say(login("guess"), "Authorization Violation");
    refuses(Broker::Nats, Server::port, stranger, say(login("secret"), "PONG")).await;
}

/// Creates the topic `orders`; the answer holds the name and then the code of what went wrong.
fn kafka_topic(expected: &'static str) -> Say {
    // The kind of request and its version, a number that comes back, no client's name; one topic with one partition and
    // one replica, ten seconds, for real.
    let header = b"\0\x13\0\x02\0\0\0\x07\xff\xff";
    let body = b"\0\0\0\x01\0\x06orders\0\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\0\x27\x10\0";
    let length = (header.len() + body.len()) as u8;
    say([&[0, 0, 0, length], &header[..], body].concat(), expected)
}

#[tokio::test]
async fn kafka_keeps_a_topic() {
    let (made, exists) = (kafka_topic("orders\0\0"), kafka_topic("orders\0\x24"));
    survives(Broker::Kafka, Server::port, &[made], exists).await;
}

#[tokio::test]
async fn kafka_asks_for_the_password() {
    // First which mechanism, then the login with it; the answer names no error.
    let mechanism = b"\0\0\0\x11\0\x11\0\x01\0\0\0\x01\xff\xff\0\x05PLAIN";
    let login = b"\0\0\0\x1a\0\x24\0\0\0\0\0\x02\xff\xff\0\0\0\x0c\0user\0secret";
    let friend = [&mechanism[..], login, &kafka_topic("").0].concat();
    hangs_up_on(Broker::Kafka, &kafka_topic("").0, say(friend, "orders\0\0")).await;
}

#[tokio::test]
async fn kafka_speaks_tls_where_asked() {
    speaks_tls(Broker::Kafka, "kafkas://", "").await;
}

/// Frames of STOMP after a login.
fn stomp(password: &str, frames: &str, expected: &'static str) -> Say {
    let login = format!("CONNECT\naccept-version:1.2\nhost:x\nlogin:user\npasscode:{password}\n\n\0\n");
    say(format!("{login}{frames}"), expected)
}

fn stomp_send() -> Say {
    let headers = "destination:orders\ndestination-type:ANYCAST\npersistent:true\nreceipt:sent";
    stomp("password", &format!("SEND\n{headers}\n\nhello\0\n"), "RECEIPT\nreceipt-id:sent")
}

/// Nothing is acknowledged, so the message stays.
fn stomp_receive() -> Say {
    let headers = "destination:orders\nsubscription-type:ANYCAST\nid:1\nack:client";
    stomp("password", &format!("SUBSCRIBE\n{headers}\n\n\0\n"), "\n\nhello\0")
}

/// What answers on the port of the URL is AMQP 1.0.
fn stomp_port(server: &Server) -> u16 {
    ask(server.port(), &say("AMQP\x03\x01\0\0", "AMQP\x03\x01\0\0"));
    server.stomp_port().unwrap()
}

#[tokio::test]
async fn artemis_keeps_a_persistent_message() {
    survives(Broker::Artemis, stomp_port, &[stomp_send()], stomp_receive()).await;
}

#[tokio::test]
async fn artemis_asks_for_the_password() {
    let (stranger, friend) = (stomp("guess", "", "ERROR\n"), stomp("secret", "", "CONNECTED\n"));
    refuses(Broker::Artemis, stomp_port, stranger, friend).await;
}

#[tokio::test]
async fn artemis_takes_a_setting() {
    if skipped(Broker::Artemis.service()) {
        return;
    }
    let options = Options::default()
        .with_setting("addressSettings.#.autoCreateQueues", false)
        .with_setting("addressSettings.#.autoCreateAddresses", false);
    let server = Server::start(Broker::Artemis, options).await.unwrap();
    let (request, _) = stomp_send();
    ask(server.port(), &say(request, "AMQ339"));
}

#[tokio::test]
async fn artemis_speaks_tls_where_asked() {
    speaks_tls(Broker::Artemis, "artemiss://", "").await;
}

#[tokio::test]
async fn activemq_keeps_a_persistent_message() {
    let on_queue = |(request, expected): Say| {
        let text = String::from_utf8(request).unwrap();
        say(text.replace("destination:orders", "destination:/queue/orders"), expected)
    };
    survives(Broker::Activemq, stomp_port, &[on_queue(stomp_send())], on_queue(stomp_receive())).await;
}

#[tokio::test]
async fn activemq_asks_for_the_password() {
    let (stranger, friend) = (stomp("guess", "", "ERROR\n"), stomp("secret", "", "CONNECTED\n"));
    refuses(Broker::Activemq, stomp_port, stranger, friend).await;
}

/// The end of one is not noticed by the others.
async fn are_independent(broker: Broker) {
    if skipped(broker.service()) {
        return;
    }
    let start = || Server::start(broker, Options::default());
    let (one, two, three) = tokio::try_join!(start(), start(), start()).unwrap();
    one.kill().await;
    for other in [&two, &three] {
        assert!(is_running(other.pid().unwrap()));
        assert_ne!(other.port(), one.port());
    }
    one.restart().await.unwrap();
}

#[tokio::test]
async fn redis_runs_three_times_at_once() {
    are_independent(Broker::Redis).await;
}

#[tokio::test]
async fn rabbitmq_runs_three_times_at_once() {
    are_independent(Broker::Rabbitmq).await;
}

#[tokio::test]
async fn nats_runs_three_times_at_once() {
    are_independent(Broker::Nats).await;
}

#[tokio::test]
async fn kafka_runs_three_times_at_once() {
    are_independent(Broker::Kafka).await;
}

#[tokio::test]
async fn artemis_runs_three_times_at_once() {
    are_independent(Broker::Artemis).await;
}

#[tokio::test]
async fn activemq_runs_three_times_at_once() {
    are_independent(Broker::Activemq).await;
}

#[tokio::test]
async fn the_shared_broker_gives_each_test_names_of_its_own() {
    let Some(server) = shared(Broker::Redis).await else { return };
    let (first, second) = (server.name("orders"), server.name("orders"));
    assert_ne!(first, second);
    assert!(first.starts_with("orders-"));
    if std::env::var_os(Broker::Redis.service().url_variable()).is_some() {
        assert!(matches!(server.kill().await, Err(Error::NotOurs { .. })));
    }
}

#[tokio::test]
async fn an_option_that_a_broker_lacks_is_refused() {
    let refused = Server::start(Broker::Activemq, Options::default().with_tls()).await;
    assert_eq!(refused.unwrap_err().to_string(), "activemq is not set up for TLS here");
    let refused = Server::start(Broker::Redis, Options::default().with_advertised_port(1)).await;
    assert_eq!(refused.unwrap_err().to_string(), "redis tells its clients no port");
}
