//! What every adapter has to do, done by a real server.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_conformance::{Fixture, Hook, Killed, Network, Proxy, Traffic, kill_while_publishing};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};
use tidegate_services::broker::{Broker as Service, Options, Server};

/// One server for all cases, and a network before it.
#[derive(Default)]
struct Redis {
    running: Option<(Server, Arc<Proxy>)>,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

impl Redis {
    fn running(&self) -> Result<&(Server, Arc<Proxy>)> {
        self.running.as_ref().ok_or_else(|| Error::new(code::INTERNAL, "the server was not started"))
    }

    /// A broker for whoever logs in like this.
    fn open(&self, login: &str) -> Result<Arc<dyn Broker>> {
        let port = self.running()?.1.port();
        let url = format!(
            "redis://{login}127.0.0.1:{port}?lease_ms=1000&grace_ms=300&patience_ms=1500&timeout_ms=1000"
        );
        tidegate_redis::open_broker(&Endpoint::parse(&url)?)
    }

    /// A connection beside the adapter.
    async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.running()?.0.url()).map_err(failed)?;
        client.get_multiplexed_async_connection().await.map_err(failed)
    }
}

#[async_trait]
impl Fixture for Redis {
    fn adapter(&self) -> &'static str {
        "redis"
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        if self.running.is_none() {
            let server = Server::start(Service::Redis, Options::default().with_password("secret"))
                .await
                .map_err(failed)?;
            let proxy = Arc::new(Proxy::start(server.port()).await?);
            self.running = Some((server, proxy));
        }
        redis::cmd("FLUSHALL").exec_async(&mut self.connection().await?).await.map_err(failed)?;
        self.connect().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        self.open(":secret@")
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        self.open(":wrong@").map(Some)
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
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        proxy.set(Traffic::Closed);
        proxy.set(Traffic::Open);
        Ok(Hook::Done)
    }

    fn network(&self) -> std::result::Result<Arc<dyn Network>, &'static str> {
        let running = self.running().map_err(|_| "the server was not started")?;
        Ok(Arc::clone(&running.1) as Arc<dyn Network>)
    }

    async fn lose_answers(&mut self, calls: usize) -> Result<Hook> {
        // Of all that is asked, only what appends names the sizes of lanes and the ids of messages.
        self.running()?.1.lose_answers("}:ids:", calls);
        Ok(Hook::Done)
    }

    /// A channel is nothing but its keys.
    async fn remove(&mut self, channel: &Channel, _: &Subscription) -> Result<Hook> {
        let mut connection = self.connection().await?;
        let pattern = format!("tidegate:{{{}}}:*", channel.name);
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await.map_err(failed)?;
        redis::cmd("DEL").arg(keys).exec_async(&mut connection).await.map_err(failed)?;
        Ok(Hook::Done)
    }

    async fn kept(&mut self, channel: &Channel) -> Result<Option<u64>> {
        // In one piece: what is settled goes at any moment.
        let mut look = redis::pipe();
        look.atomic();
        for lane in 0..channel.lanes {
            look.cmd("XLEN").arg(format!("tidegate:{{{}}}:lane:{lane}", channel.name));
        }
        look.cmd("HGET").arg(format!("tidegate:{{{}}}:record", channel.name)).arg("bytes");
        let found: Vec<Option<u64>> =
            look.query_async(&mut self.connection().await?).await.map_err(failed)?;
        let (bytes, lanes) = found.split_last().ok_or_else(|| Error::new(code::INTERNAL, "no answer"))?;
        let kept: u64 = lanes.iter().flatten().sum();
        // What limits are kept by has to be what is there.
        if (kept == 0) != (bytes.unwrap_or_default() == 0) {
            return Err(Error::new(
                code::INTERNAL,
                format!("{kept} messages are there, and {bytes:?} bytes counted"),
            ));
        }
        Ok(Some(kept))
    }

    async fn clean_up(&mut self) -> Result<()> {
        Ok(())
    }
}

fn main() -> ExitCode {
    if tidegate_services::skipped(Service::Redis.service()) {
        return ExitCode::SUCCESS;
    }
    tidegate_conformance::program(|| Box::new(Redis::default()))
}
