use std::io::Write;

use tidegate_core::Error;
use tidegate_core::error::code;
use tidegate_core::port::{Effective, StateStore};
use tidegate_runtime::{Failure, Handlers, Json, Metrics, Policy, Sender, Service, State, Trace};
use tracing_subscriber::fmt::format::FmtSpan;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// Behind a failure.
const PAUSE: Duration = Duration::from_millis(10);

/// Two services one behind the other: what the first one handles leads to a bill, which the second one sees.
async fn chain(world: &World) -> (Running, Running, Arc<Mutex<Vec<Message>>>) {
    #[derive(Clone)]
    struct Billing(Sender, Arc<Mutex<Option<Trace>>>);
    let bills = Channel::new("bills").unwrap().with_lanes(1);
    let (second, seen) = collect_as(world, &bills, Service::new("ledger")).await;
    let patience = Duration::from_secs(5);
    let sender = Sender::open(&*world.broker, &bills)
        .with_clock(Arc::clone(&world.clock))
        .with_patience(patience)
        .await
        .unwrap();
    let bill = |State(billing): State<Billing>, message: Message| async move {
        *billing.1.lock().unwrap() = Trace::current();
        tokio::task::yield_now().await;
        assert_eq!(Trace::current(), *billing.1.lock().unwrap(), "it stays behind a pause");
        let bill = Message::with_id(format!("bill-{}", message.id), "billing", "bill.v1").caused_by(&message);
        billing.0.send(bill).await
    };
    let first = Service::new("billing")
        .with_state(Billing(sender, Arc::default()))
        .on(&world.orders, Handlers::new().handle(bill).with_policy(Policy::skip()));
    (first.start(&world.broker).await.unwrap(), second, seen)
}

fn traced() -> Message {
    let mut message = placed("a:1");
    message.traceparent = Some(format!("00-{TRACE}-{PARENT}-01").into());
    message.extensions.set("tracestate", "vendor=1").unwrap();
    message
}

#[tokio::test(start_paused = true)]
async fn a_trace_goes_through_every_hop_and_each_has_a_span_of_its_own() {
    let world = World::new().await;
    let (first, second, seen) = chain(&world).await;
    let mut headers = placed("b:1").with_header("traceparent", format!("00-{TRACE}-{PARENT}-00")).unwrap();
    headers.headers.set("tracestate", "vendor=2").unwrap();
    let plain = placed("c:1");
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[traced(), headers, plain]).await;
    eventually("the bills", || second.counted().handled == 3).await;
    drain(first).await;
    drain(second).await;
    let seen = seen.lock().unwrap();
    let bill = |id: &str| seen.iter().find(|bill| *bill.id == *id).unwrap();
    let mut spans = std::collections::HashSet::from([PARENT.to_owned()]);
    for (id, state, flags) in [("bill-a:1", "vendor=1", "01"), ("bill-b:1", "vendor=2", "00")] {
        let (bill, head) = (bill(id), format!("00-{TRACE}-"));
        let text = bill.traceparent.as_deref().unwrap();
        assert!(text.starts_with(&head) && text.ends_with(flags), "{text}");
        assert!(spans.insert(text[36..52].to_owned()), "a span of its own: {text}");
        assert_eq!(bill.headers.get("traceparent"), Some(text));
        assert_eq!(
            (bill.headers.get("tracestate"), bill.extensions.get("tracestate")),
            (Some(state), Some(state))
        );
    }
    assert_eq!(bill("bill-c:1").traceparent, None, "nobody looks, so no trace is begun");
}

/// Where lines of spans are kept.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn spans_have_the_names_of_opentelemetry_and_are_tied_by_their_ids() {
    let lines = Lines::default();
    let subscriber = {
        let lines = lines.clone();
        tracing_subscriber::fmt()
            .json()
            .with_span_events(FmtSpan::CLOSE)
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_writer(move || lines.clone())
            .finish()
    };
    // With one subscriber alone, a span that a thread without one meets first is off for all threads.
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _looking = tracing::subscriber::set_default(subscriber);
    let world = World::new().await;
    let (first, second, seen) = chain(&world).await;
    let (clock, patience) = (Arc::clone(&world.clock), Duration::from_secs(5));
    let sender =
        Sender::open(&*world.broker, &world.orders).with_clock(clock).with_patience(patience).await.unwrap();
    sender.send(placed("a:1")).await.unwrap();
    eventually("the bill", || second.counted().handled == 1).await;
    drain(first).await;
    drain(second).await;

    let bytes = lines.0.lock().unwrap().clone();
    let spans: Vec<serde_json::Value> = String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["fields"]["message"] == "close" && line["target"] == "tidegate::messages")
        .map(|line| line["span"].clone())
        .collect();
    let span = |name: &str, channel: &str| {
        let is_it =
            |span: &&serde_json::Value| span["name"] == name && span["messaging.destination.name"] == channel;
        spans.iter().find(is_it).unwrap_or_else(|| panic!("{name} {channel} among {spans:#?}"))
    };
    let hops = [("publish", "orders"), ("process", "orders"), ("publish", "bills"), ("process", "bills")];
    let mut before = serde_json::Value::Null;
    for (name, channel) in hops {
        let span = span(name, channel);
        let kind = if name == "publish" { "send" } else { name };
        assert_eq!(span["messaging.operation.type"], kind);
        assert_eq!(
            (&span["messaging.system"], &span["messaging.operation.name"]),
            (&"memory".into(), &name.into())
        );
        assert_eq!(span["otel.name"], format!("{name} {channel}"));
        assert_eq!(span["messaging.message.id"], if channel == "bills" { "bill-a:1" } else { "a:1" });
        if !before.is_null() {
            assert_eq!(span["trace_id"], before["trace_id"]);
            assert_eq!(span["parent_span_id"], before["span_id"], "{name} {channel}");
        }
        before = span.clone();
    }
    for name in ["receive", "settle"] {
        assert_eq!(span(name, "orders")["messaging.batch.message_count"], 1);
    }
    let trace = Trace::parse(seen.lock().unwrap()[0].traceparent.as_deref().unwrap()).unwrap();
    assert!(trace.is_sampled() && before["trace_id"] == trace.to_string()[3..35]);
}

#[tokio::test]
async fn what_a_service_does_is_measured_without_ids() {
    let world = World::new().await;
    let store: Arc<dyn StateStore> = Arc::clone(&world.store);
    let handle = |Json(placed): Json<Placed>| async move {
        match &*placed.order {
            "bad" => Err(Failure::never("no")),
            "hangs" => std::future::pending().await,
            "late" if placed.number == 0 => Err(Failure::retry("later")),
            _ => Ok(()),
        }
    };
    let metrics = Metrics::default().with_clock(Arc::clone(&world.clock));
    let policy = Policy::park_key().with_attempts(2).with_pauses(PAUSE, PAUSE);
    let handlers = Handlers::new().handle(handle).with_policy(policy);
    let service = Service::new("billing").with_store(store).with_metrics(&metrics);
    let service = service.on(&world.orders, handlers).start(&world.broker).await.unwrap();
    let strange = Message::with_id("s", "shop", "strange.v1");
    world.place(&["a:1", "b:1", "bad:1", "bad:2", "late:0", "hangs:1"]).await;
    send(&mut *world.broker.producer(&world.orders).await.unwrap(), &[strange]).await;
    eventually("all of them", || service.counted().dead == 4 && service.counted().handled == 2).await;
    let place = r#"channel="orders",subscription="billing""#;
    let is_there = |name: &str, more: &str, value: &str| {
        let line = format!("tidegate_{name}{{{place}{more}}} {value}");
        metrics.text().lines().any(|known| known == line)
    };
    for (name, more, value) in [
        ("messages_handled_total", r#",kind="order.placed.v1""#, "2"),
        ("messages_retried_total", r#",kind="order.placed.v1""#, "1"),
        ("messages_handled_total", r#",kind="other""#, "0"),
        ("messages_dead_total", r#",reason="refused""#, "1"),
        ("messages_dead_total", r#",reason="behind""#, "1"),
        ("messages_dead_total", r#",reason="exhausted""#, "1"),
        ("messages_dead_total", r#",reason="unhandled""#, "1"),
        ("settles_lost_total", "", "0"),
        ("settles_unknown_total", "", "0"),
        ("subjects_parked", "", "2.0"),
        ("handler_seconds_count", r#",kind="order.placed.v1""#, "5"),
    ] {
        assert!(is_there(name, more, value), "{name} {more} {value} in\n{}", metrics.text());
    }
    eventually("all but one are settled", || is_there("messages_in_hand", "", "1.0")).await;
    assert!(metrics.text().ends_with("# EOF\n"));
    assert!(!metrics.text().contains("strange") && !metrics.text().contains("hangs"));
    assert_eq!(service.metrics().text().lines().count(), metrics.text().lines().count());
    service.drain(PAUSE).await.unwrap();
    assert!(!metrics.text().contains("orders"), "it has ended");
}

#[cfg(feature = "listen")]
#[tokio::test]
async fn metrics_are_answered_over_http() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let refused = Metrics::default().serve(address).await.unwrap_err();
    assert_eq!(refused.code(), tidegate_core::error::code::CONFIG_INVALID);
    drop(taken);
    let mut tasks = tidegate_core::Scope::new();
    tasks.spawn(Metrics::default().serve(address));
    let mut stream = loop {
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let asked = b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("openmetrics-text"), "{answer}");
    assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
}

#[tokio::test]
async fn what_the_server_may_lose_is_logged_when_a_service_starts_and_what_it_cannot_do_ends_the_start() {
    let lines = Lines::default();
    let subscriber = {
        let lines = lines.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || lines.clone()).finish()
    };
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _looking = tracing::subscriber::set_default(subscriber);
    let (world, calls) = watched::Watched::world().await;
    let start = async || {
        let handlers = Handlers::new().handle(|_: Message| async {}).with_policy(Policy::skip());
        Service::new("billing").on(&world.orders, handlers).start(&world.broker).await
    };
    calls.finds(Ok(Effective {
        version: "1".into(),
        warnings: vec!["appendonly is not yes".into()],
        ..Effective::default()
    }));
    drain(start().await.unwrap()).await;
    calls.finds(Err(Error::new(code::ACCESS_DENIED, "the user may not do this")));
    drain(start().await.unwrap()).await;
    calls.finds(Err(Error::new(code::VERSION_UNSUPPORTED, "the server is older than Redis 7")));
    assert_eq!(start().await.unwrap_err().code(), code::VERSION_UNSUPPORTED);
    let logged = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let warned: Vec<&str> = logged.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warned.len(), 2, "{logged}");
    assert!(warned[0].contains("appendonly is not yes") && warned[0].contains("service=billing"), "{logged}");
    assert!(warned[1].contains("settings cannot be looked at") && warned[1].contains("TG0011"), "{logged}");
}
