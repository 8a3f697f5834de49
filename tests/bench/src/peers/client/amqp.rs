//! fe2o3-amqp, with a durable queue of Artemis or ActiveMQ Classic.

use async_trait::async_trait;
use bytes::Bytes;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{Body, Data, Header, Message, Outcome, Source, Target};
use fe2o3_amqp::types::primitives::{Array, Binary, Symbol, Value};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use futures::FutureExt as _;
use tidegate_core::{Endpoint, Ids as _, SystemIds};
use tokio::net::TcpStream;
use tokio::sync::Mutex;

use super::{Client, Consumer, Producer, Take};
use crate::Result;
use crate::load::WINDOW;

struct Amqp(Endpoint);

/// A client of the server of a URL.
pub fn client(url: &str) -> Result<Box<dyn Client>> {
    Ok(Box::new(Amqp(Endpoint::parse(url)?)))
}

/// A session, and the connection that it is on.
struct Open {
    session: SessionHandle<()>,
    _connection: ConnectionHandle<()>,
}

impl Amqp {
    async fn connect(&self) -> Result<Open> {
        let url = self.0.url()?;
        let (host, port) = (url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let login = SaslProfile::Plain {
            username: url.username().to_owned(),
            password: url.password().unwrap_or_default().to_owned(),
        };
        // Classic has one connection of each name.
        let name = SystemIds.next().to_string();
        let builder = Connection::builder().container_id(name).hostname(host).sasl_profile(login);
        let mut connection = builder.open_with_stream(stream).await?;
        let session = Session::begin(&mut connection).await?;
        Ok(Open { session, _connection: connection })
    }

    /// The server makes the queue when it is named.
    async fn sender(&self, topic: &str) -> Result<(Sender, Open)> {
        let mut open = self.connect().await?;
        let target = Target::builder().address(topic).capabilities(queue()).build();
        let sender = Sender::builder().name("bench").target(target).attach(&mut open.session).await?;
        Ok((sender, open))
    }
}

fn queue() -> Array<Symbol> {
    Array(vec![Symbol::from("queue")])
}

#[async_trait]
impl Client for Amqp {
    async fn create(&self, topic: &str) -> Result<()> {
        let (sender, _open) = self.sender(topic).await?;
        Ok(sender.close().await?)
    }

    /// Nothing to do: Artemis removes a queue that is empty and that nobody uses, and in Classic it takes no room.
    async fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn producer(&self, topic: &str) -> Result<Box<dyn Producer>> {
        let (sender, open) = self.sender(topic).await?;
        Ok(Box::new(AmqpProducer { sender: Mutex::new(sender), _open: open }))
    }

    async fn consumer(&self, topic: &str) -> Result<Box<dyn Consumer>> {
        let mut open = self.connect().await?;
        let source = Source::builder().address(topic).capabilities(queue()).build();
        let receiver = Receiver::builder()
            .name("bench")
            .source(source)
            .credit_mode(CreditMode::Auto(u32::try_from(4 * WINDOW)?))
            .attach(&mut open.session)
            .await?;
        Ok(Box::new(AmqpConsumer { receiver, _open: open }))
    }
}

struct AmqpProducer {
    sender: Mutex<Sender>,
    _open: Open,
}

fn message(body: Bytes) -> Message<Data> {
    let header = Header { durable: true, ..Header::default() };
    Message::builder().header(header).data(Binary::from(body)).build()
}

fn stored(outcome: std::result::Result<Outcome, SendError>) -> Result<()> {
    match outcome? {
        Outcome::Accepted(_) => Ok(()),
        other => Err(format!("the server did not take a message: {other:?}").into()),
    }
}

#[async_trait]
impl Producer for AmqpProducer {
    async fn window(&self, bodies: &[Bytes]) -> Result<()> {
        let mut sender = self.sender.lock().await;
        let mut sent = Vec::with_capacity(bodies.len());
        for body in bodies {
            sent.push(sender.send_batchable(message(body.clone())).await?);
        }
        for sent in sent {
            stored(sent.await)?;
        }
        Ok(())
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        let sent = self.sender.lock().await.send_batchable(message(body)).await?;
        stored(sent.await)
    }
}

struct AmqpConsumer {
    receiver: Receiver,
    _open: Open,
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn batch(&mut self, take: &mut Take<'_>) -> Result<()> {
        let mut done: Vec<DeliveryInfo> = Vec::new();
        let mut next = Some(self.receiver.recv::<Body<Value>>().await?);
        while let Some(delivery) = next {
            match delivery.body() {
                Body::Data(parts) => parts.iter().try_for_each(|part| take(&part.0))?,
                _ => return Err("a message came that was not sent".into()),
            }
            done.push(DeliveryInfo::from(&delivery));
            let is_full = done.len() as u64 == WINDOW;
            let more = if is_full { None } else { self.receiver.recv::<Body<Value>>().now_or_never() };
            next = more.transpose()?;
        }
        Ok(self.receiver.accept_all(done).await?)
    }
}
