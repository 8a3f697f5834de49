//! What every adapter has to do, done by a real server.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use tidegate_conformance::{Fixture, Hook, Killed, Network, Proxy, Traffic, kill_while_publishing};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};
use tidegate_services::broker::{Broker as Service, Options, Server};

/// How long both ends are left to notice that connections were cut.
const NOTICED: Duration = Duration::from_millis(200);

/// How long a server that is killed has to know of its queues.
const RIPE: Duration = Duration::from_secs(4);

/// One server for all cases, and a network before it. The server has nothing that empties it, and takes long to start: cases
/// have channels of their own, and leave them.
#[derive(Default)]
struct Rabbit {
    running: Option<(Server, Arc<Proxy>)>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

impl Rabbit {
    fn running(&self) -> Result<&(Server, Arc<Proxy>)> {
        self.running.as_ref().ok_or_else(|| Error::new(code::INTERNAL, "the server was not started"))
    }

    /// A broker for whoever logs in like this.
    fn open(&self, login: &str) -> Result<Arc<dyn Broker>> {
        let port = self.running()?.1.port();
        let url =
            format!("amqp://{login}127.0.0.1:{port}?lease_ms=3000&grace_ms=300&patience_ms=1500&ripe_ms=0");
        tidegate_rabbitmq::open_broker(&Endpoint::parse(&url)?)
    }
}

#[async_trait]
impl Fixture for Rabbit {
    fn adapter(&self) -> &'static str {
        "rabbitmq"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        if self.running.is_none() {
            let server = Server::start(Service::Rabbitmq, Options::default()).await.map_err(failed)?;
            let proxy = Arc::new(Proxy::start(server.port()).await?);
            self.running = Some((server, proxy));
        }
        self.connect().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        self.open("guest:guest@")
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        self.open("guest:wrong@").map(Some)
    }

    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        let server = &self.running()?.0;
        server.stop().await;
        server.restart().await.map_err(failed)?;
        self.connect().await
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let broker = self.connect().await?;
        let server = self.running()?.0.clone();
        // What `ripe_ms` is for, here once, and not in every case that makes a channel.
        tokio::time::sleep(RIPE).await;
        let confirmed = kill_while_publishing(&*broker, channel, prefix, server.kill()).await?;
        server.restart().await.map_err(failed)?;
        Ok(Killed { broker: self.connect().await?, confirmed })
    }

    /// The server is not heard of for a while, and its connections are gone then.
    async fn cut(&mut self) -> Result<Hook> {
        let proxy = &self.running()?.1;
        proxy.set(Traffic::Silent);
        tokio::time::sleep(NOTICED).await;
        proxy.set(Traffic::Closed);
        proxy.set(Traffic::Open);
        tokio::time::sleep(NOTICED).await;
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        let running = self.running().map_err(|_| "the server was not started")?;
        Ok(Arc::clone(&running.1) as Arc<dyn Network>)
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        // What publishes to a channel names the attributes of its messages; books and registers have none.
        self.running()?.1.lose_answers("cloudEvents_id", calls);
        Ok(Hook::Done)
    }

    async fn remove(&mut self, channel: &Channel, subscription: &Subscription) -> Result<Hook> {
        let url = self.running()?.0.url();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.map_err(failed)?;
        let amqp = connection.create_channel().await.map_err(failed)?;
        for lane in 0..channel.lanes {
            let queue = format!("tidegate/{}/{}/{lane}", channel.name, subscription.name);
            amqp.queue_delete(queue.into(), QueueDeleteOptions::default()).await.map_err(failed)?;
        }
        connection.close(200, "done".into()).await.map_err(failed)?;
        Ok(Hook::Done)
    }

    /// The server counts what waits, and nobody but its own tools sees what is in hand beside it.
    async fn kept(&mut self, _: &Channel) -> Result<Option<u64>> {
        Ok(None)
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    if tidegate_services::skipped(Service::Rabbitmq.service()) {
        return ExitCode::SUCCESS;
    }
    tidegate_conformance::program(|| Box::new(Rabbit::default()))
}
