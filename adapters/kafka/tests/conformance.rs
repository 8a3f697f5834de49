//! What every adapter has to do, done by a real server.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaResult;
use tidegate_conformance::{Fixture, Hook, Killed, Network, Proxy, Traffic, kill_while_publishing};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};
use tidegate_services::broker::{Broker as Service, Options, Server};

type Admin = AdminClient<DefaultClientContext>;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One server for all cases, and a network before it.
#[derive(Default)]
struct Kafka {
    running: Option<Running>,
}

struct Running {
    server: Server,
    proxy: Arc<Proxy>,
    /// Beside the adapter.
    admin: Arc<Admin>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

/// Calls of the library wait where they are made.
async fn ask<T: Send + 'static>(
    admin: &Arc<Admin>,
    call: impl FnOnce(&Admin) -> KafkaResult<T> + Send + 'static,
) -> Result<T> {
    let admin = Arc::clone(admin);
    tokio::task::spawn_blocking(move || call(&admin)).await.map_err(failed)?.map_err(failed)
}

async fn topics(admin: &Arc<Admin>) -> Result<Vec<String>> {
    ask(admin, |admin| {
        let metadata = admin.inner().fetch_metadata(None, PATIENCE)?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    })
    .await
}

impl Kafka {
    fn running(&self) -> Result<&Running> {
        self.running.as_ref().ok_or_else(|| Error::new(code::INTERNAL, "the server was not started"))
    }

    /// A broker for whoever logs in like this.
    fn open(&self, login: &str) -> Result<Arc<dyn Broker>> {
        let port = self.running()?.proxy.port();
        let url = format!(
            "kafka://{login}127.0.0.1:{port}?lease_ms=2000&grace_ms=300&patience_ms=4000&timeout_ms=8000"
        );
        tidegate_kafka::open_broker(&Endpoint::parse(&url)?)
    }

    async fn launch() -> Result<Running> {
        let proxy = Arc::new(Proxy::start(0).await?);
        // A client finds the server where it says that it is.
        let options = Options::default().with_advertised_port(proxy.port()).with_password("secret");
        let server = Server::start(Service::Kafka, options).await.map_err(failed)?;
        proxy.lead_to(server.port());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", proxy.port()));
        config.set("security.protocol", "sasl_plaintext").set("sasl.mechanism", "SCRAM-SHA-256");
        config.set("sasl.username", "user").set("sasl.password", "secret");
        let admin = config.set("reconnect.backoff.max.ms", "500").create().map_err(failed)?;
        Ok(Running { server, proxy, admin: Arc::new(admin) })
    }
}

#[async_trait]
impl Fixture for Kafka {
    fn adapter(&self) -> &'static str {
        "kafka"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        if self.running.is_none() {
            self.running = Some(Self::launch().await?);
        }
        let admin = &self.running()?.admin;
        let is_ours = |name: &String| !name.starts_with("__");
        let mut there = topics(admin).await?;
        there.retain(is_ours);
        if !there.is_empty() {
            let names: Vec<&str> = there.iter().map(String::as_str).collect();
            admin.delete_topics(&names, &AdminOptions::new()).await.map_err(failed)?;
            while topics(admin).await?.iter().any(is_ours) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.connect().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        self.open("user:secret@")
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        self.open("user:wrong@").map(Some)
    }

    async fn restart(&mut self) -> Result<Arc<dyn Broker>> {
        self.running()?.server.restart().await.map_err(failed)?;
        self.connect().await
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let broker = self.connect().await?;
        let server = self.running()?.server.clone();
        let confirmed = kill_while_publishing(&*broker, channel, prefix, server.kill()).await?;
        server.restart().await.map_err(failed)?;
        Ok(Killed { broker: self.connect().await?, confirmed })
    }

    /// The server is not heard of for longer than a lease, and its connections are gone then.
    async fn cut(&mut self) -> Result<Hook> {
        let proxy = &self.running()?.proxy;
        proxy.set(Traffic::Silent);
        tokio::time::sleep(Duration::from_millis(2_300)).await;
        proxy.set(Traffic::Closed);
        proxy.set(Traffic::Open);
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        let running = self.running().map_err(|_| "the server was not started")?;
        Ok(Arc::clone(&running.proxy) as Arc<dyn Network>)
    }

    async fn lose_answers(&mut self, _: usize) -> Result<Hook> {
        Ok(Hook::Cannot("a producer of Kafka asks again by itself, and knows the answer then"))
    }

    async fn remove(&mut self, channel: &Channel, _: &Subscription) -> Result<Hook> {
        let admin = &self.running()?.admin;
        let topic = [channel.name.as_str()];
        admin.delete_topics(&topic, &AdminOptions::new()).await.map_err(failed)?;
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        let (name, lanes) = (channel.name.to_string(), channel.lanes);
        let kept = ask(&self.running()?.admin, move |admin| {
            let mut kept = 0;
            for lane in 0..lanes {
                let (begin, end) = admin.inner().fetch_watermarks(&name, lane.cast_signed(), PATIENCE)?;
                kept += end - begin;
            }
            Ok(kept)
        });
        Ok(Some(kept.await?.cast_unsigned()))
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    if tidegate_services::skipped(Service::Kafka.service()) {
        return ExitCode::SUCCESS;
    }
    tidegate_conformance::program(|| Box::new(Kafka::default()))
}
