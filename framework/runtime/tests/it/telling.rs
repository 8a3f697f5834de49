//! Spans, as a collector of OpenTelemetry gets them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use tidegate_core::error::code;
use tidegate_core::{Apply, Channel, Message, Subscription, Topology};
use tidegate_runtime::{Failure, Handlers, Policy, Sender, Service, State, Telemetry, Trace};
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{World, collect_as, drain, eventually, placed};

type Requests = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// A collector on a thread of its own: its address, and what it was given.
fn collector() -> (String, Requests) {
    let requests = Requests::default();
    let taken = Arc::clone(&requests);
    let take = move |body: Bytes| async move {
        taken.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
    };
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().route("/v1/traces", post(take))).await.unwrap();
        });
    });
    (address, requests)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(span: &Span, name: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name);
    match attribute.and_then(|found| found.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name} of {span:?} is {other:?}"),
    }
}

#[tokio::test]
async fn a_collector_gets_the_spans_of_messages_and_those_within() {
    async fn bill(State(to): State<Arc<Sender>>, order: Message) -> Result<(), Failure> {
        async {
            let bill = Message::with_id(format!("bill-{}", order.id), "billing", "billed.v1");
            to.send(bill).await.map_err(|error| Failure::retry(error.to_string()))
        }
        .instrument(tracing::info_span!("reckon", rows = 3_u64, is_new = true))
        .await?;
        if order.subject.as_deref() == Some("bad") { Err(Failure::never("no money")) } else { Ok(()) }
    }
    let (address, requests) = collector();
    let telemetry = Telemetry::open(&address, "billing").unwrap();
    // As in the test of spans beside: one subscriber alone would leave spans off that another thread met first.
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _looking = tracing::subscriber::set_default(tracing_subscriber::registry().with(telemetry.layer()));
    let world = World::new().await;
    let (clock, patience) = (Arc::clone(&world.clock), Duration::from_secs(5));
    let bills = Channel::new("bills").unwrap().with_lanes(1);
    let (ledger, seen) = collect_as(&world, &bills, Service::new("ledger")).await;
    let to = Sender::open(&*world.broker, &bills)
        .with_clock(Arc::clone(&clock))
        .with_patience(patience)
        .await
        .unwrap();
    let handlers = Handlers::new().handle(bill).with_policy(Policy::skip());
    let service = Service::new("billing").with_state(Arc::new(to)).on(&world.orders, handlers);
    let running = service.start(&world.broker).await.unwrap();
    let sender =
        Sender::open(&*world.broker, &world.orders).with_clock(clock).with_patience(patience).await.unwrap();
    sender.send(placed("a:1")).await.unwrap();
    sender.send(placed("bad:1")).await.unwrap();
    let mut foreign = placed("c:1");
    foreign.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".into());
    sender.send(foreign).await.unwrap();
    eventually("the bills", || seen.lock().unwrap().len() == 3 && running.counted().dead == 1).await;
    drain(running).await;
    drain(ledger).await;
    tokio::task::spawn_blocking(move || telemetry.close()).await.unwrap().unwrap();

    let requests = std::mem::take(&mut *requests.lock().unwrap());
    let parts = || requests.iter().flat_map(|request| &request.resource_spans);
    for part in parts() {
        let service = part.resource.as_ref().unwrap().attributes.iter();
        let mut service = service.filter(|attribute| attribute.key == "service.name");
        let name = service.next().and_then(|found| found.value.clone()?.value);
        assert_eq!(name, Some(Value::StringValue("billing".to_owned())));
    }
    let spans: Vec<&Span> =
        parts().flat_map(|part| &part.scope_spans).flat_map(|scope| &scope.spans).collect();
    let of = |name: &str, message: &str| {
        let is_it = |span: &&&Span| span.name == name && text(span, "messaging.message.id") == message;
        *spans.iter().find(is_it).unwrap_or_else(|| panic!("{name} of {message} among {spans:#?}"))
    };
    let publish = of("publish orders", "a:1");
    assert_eq!((publish.kind(), publish.parent_span_id.len()), (SpanKind::Producer, 0));
    let process = of("process orders", "a:1");
    assert_eq!((process.kind(), &process.parent_span_id), (SpanKind::Consumer, &publish.span_id));
    assert_eq!(
        (text(process, "messaging.system"), text(process, "messaging.message.delivery_attempt")),
        ("memory".to_owned(), "1".to_owned())
    );
    assert!(process.start_time_unix_nano > 0 && process.end_time_unix_nano >= process.start_time_unix_nano);
    let within = |parent: &Span, name: &str| {
        let is_it = |span: &&&Span| span.parent_span_id == parent.span_id && span.name == name;
        *spans.iter().find(is_it).unwrap_or_else(|| panic!("{name} among {spans:#?}"))
    };
    let reckon = within(process, "reckon");
    assert_eq!((reckon.kind(), text(reckon, "rows")), (SpanKind::Internal, "3".to_owned()));
    let bill = of("publish bills", "bill-a:1");
    for span in [publish, process, reckon, bill] {
        assert_eq!(hex(&span.trace_id), hex(&publish.trace_id));
    }
    // What stands in the message is what the collector has.
    let seen = seen.lock().unwrap();
    let message = seen.iter().find(|message| &*message.id == "bill-a:1").unwrap();
    let trace = Trace::parse(message.traceparent.as_deref().unwrap()).unwrap().to_string();
    assert_eq!(trace, format!("00-{}-{}-01", hex(&bill.trace_id), hex(&bill.span_id)));

    let failed = of("process orders", "bad:1");
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    assert!(!spans.iter().any(|span| hex(&span.trace_id).starts_with("0af765")), "nobody records that trace");
}

/// Neither one that takes no connections nor one that never answers keeps a program from its end, or is passed over in silence.
#[tokio::test]
async fn a_collector_that_does_not_take_spans_is_told_at_the_end() {
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let [refusing, silent_at] = [&nobody, &silent].map(|at| format!("http://{}", at.local_addr().unwrap()));
    drop(nobody);
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    for (address, told) in
        [(refusing, "spans did not reach the collector"), (silent_at, "the last spans may not have reached")]
    {
        let telemetry = Telemetry::open(&address, "billing").unwrap();
        let looking =
            tracing::subscriber::set_default(tracing_subscriber::registry().with(telemetry.layer()));
        let world = World::new().await;
        let topology = Topology::of(&world.orders).and(&Subscription::new(&world.orders, "s").unwrap());
        world.broker.apply(&topology, Apply::Create).await.unwrap();
        let sender = Sender::open(&*world.broker, &world.orders)
            .with_clock(Arc::clone(&world.clock))
            .with_patience(Duration::from_secs(5))
            .await
            .unwrap();
        sender.send(placed("a:1")).await.unwrap();
        drop(looking);
        let begin = tokio::time::Instant::now();
        let error = tokio::task::spawn_blocking(move || telemetry.close()).await.unwrap().unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(7), "{:?}", begin.elapsed());
        assert_eq!(error.code(), code::UNREACHABLE, "{error:?}");
        assert!(error.message().contains(told), "{error:?}");
    }
}

#[test]
fn an_address_that_is_none_is_told() {
    let error = Telemetry::open("not an address", "billing").unwrap_err();
    assert_eq!(error.code(), code::URL_INVALID, "{error:?}");
    assert!(error.hint_text().unwrap().contains("4318"));
}
