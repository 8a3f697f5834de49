//! What every adapter has to do, done by a real server.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_trait::async_trait;
use futures::TryStreamExt as _;
use tidegate_conformance::{Fixture, Hook, Killed, Network, Proxy, Traffic, kill_while_publishing};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};
use tidegate_services::broker::{Broker as Service, Options, Server};

/// One server for all cases, and a network before it.
#[derive(Default)]
struct Nats {
    running: Option<(Server, Arc<Proxy>)>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

fn stream(channel: &Channel) -> String {
    format!("tidegate-{}", channel.name.as_str().replace('.', "~"))
}

impl Nats {
    fn running(&self) -> Result<&(Server, Arc<Proxy>)> {
        self.running.as_ref().ok_or_else(|| Error::new(code::INTERNAL, "the server was not started"))
    }

    /// A broker for whoever logs in like this.
    fn open(&self, login: &str) -> Result<Arc<dyn Broker>> {
        let port = self.running()?.1.port();
        let url = format!("nats://{login}127.0.0.1:{port}?lease_ms=1500&grace_ms=300&patience_ms=1500");
        tidegate_nats::open_broker(&Endpoint::parse(&url)?)
    }

    /// A connection beside the adapter.
    async fn jetstream(&self) -> Result<jetstream::Context> {
        let server = format!("nats://127.0.0.1:{}", self.running()?.0.port());
        let options = async_nats::ConnectOptions::with_user_and_password("user".into(), "secret".into());
        Ok(jetstream::new(options.connect(server).await.map_err(failed)?))
    }
}

#[async_trait]
impl Fixture for Nats {
    fn adapter(&self) -> &'static str {
        "nats"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        if self.running.is_none() {
            let server = Server::start(Service::Nats, Options::default().with_password("secret"))
                .await
                .map_err(failed)?;
            let proxy = Arc::new(Proxy::start(server.port()).await?);
            self.running = Some((server, proxy));
        }
        let jetstream = self.jetstream().await?;
        let streams: Vec<String> = jetstream.stream_names().try_collect().await.map_err(failed)?;
        for stream in streams {
            jetstream.delete_stream(stream).await.map_err(failed)?;
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
        self.running()?.0.restart().await.map_err(failed)?;
        self.connect().await
    }

    async fn kill(&mut self, channel: &Channel, prefix: &str) -> Result<Killed> {
        let broker = self.connect().await?;
        let server = self.running()?.0.clone();
        let confirmed = kill_while_publishing(&*broker, channel, prefix, server.kill()).await?;
        server.restart().await.map_err(failed)?;
        Ok(Killed { broker: self.connect().await?, confirmed })
    }

    /// The server is not heard of for longer than a lease, and its connections are gone then.
    async fn cut(&mut self) -> Result<Hook> {
        let proxy = &self.running()?.1;
        proxy.set(Traffic::Silent);
        tokio::time::sleep(Duration::from_millis(1_800)).await;
        proxy.set(Traffic::Closed);
        proxy.set(Traffic::Open);
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        let running = self.running().map_err(|_| "the server was not started")?;
        Ok(Arc::clone(&running.1) as Arc<dyn Network>)
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        // Of all that is asked, only messages of a channel have an id.
        self.running()?.1.lose_answers("Nats-Msg-Id", calls);
        Ok(Hook::Done)
    }

    async fn remove(&mut self, channel: &Channel, _: &Subscription) -> Result<Hook> {
        self.jetstream().await?.delete_stream(stream(channel)).await.map_err(failed)?;
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        let stream = self.jetstream().await?.get_stream(stream(channel)).await.map_err(failed)?;
        Ok(Some(stream.cached_info().state.messages))
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    if tidegate_services::skipped(Service::Nats.service()) {
        return ExitCode::SUCCESS;
    }
    tidegate_conformance::program(|| Box::new(Nats::default()))
}
