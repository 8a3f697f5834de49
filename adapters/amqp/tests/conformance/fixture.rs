//! A server of AMQP 1.0 for the suite, whichever it is.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tidegate_conformance::{Fixture, Hook, Killed, Network, Proxy, Traffic, kill_while_publishing};
use tidegate_core::error::code;
use tidegate_core::port::Broker;
use tidegate_core::{Channel, Endpoint, Error, Result, Subscription};
use tidegate_services::broker::{Broker as Service, Options, Server};

/// How long both ends are left to notice that connections were cut.
const NOTICED: Duration = Duration::from_millis(200);

/// One server for all cases, and a network before it. The server has nothing that empties it, and takes long to start: cases
/// have channels of their own, and leave them.
struct Amqp {
    /// How it is called, as the scheme of its URLs is.
    name: &'static str,
    service: Service,
    options: Options,
    /// Removes the queues of a subscription, as the server's console does.
    destroy: Destroy,
    running: Option<(Server, Arc<Proxy>)>,
}

type Destroy = fn(Server, Channel, Subscription) -> BoxFuture<'static, Result<()>>;

pub(crate) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(code::INTERNAL, "the fixture failed").because(error)
}

impl Amqp {
    fn running(&self) -> Result<&(Server, Arc<Proxy>)> {
        self.running.as_ref().ok_or_else(|| Error::new(code::INTERNAL, "the server was not started"))
    }

    /// A broker for whoever logs in like this.
    fn open(&self, login: &str) -> Result<Arc<dyn Broker>> {
        let port = self.running()?.1.port();
        let scheme = self.name;
        let url = format!(
            "{scheme}://{login}127.0.0.1:{port}?lease_ms=3000&grace_ms=300&patience_ms=1500&timeout_ms=5000"
        );
        tidegate_amqp::open_broker(&Endpoint::parse(&url)?)
    }
}

#[async_trait]
impl Fixture for Amqp {
    fn adapter(&self) -> &'static str {
        self.name
    }

    async fn start(&mut self) -> Result<Arc<dyn Broker>> {
        if self.running.is_none() {
            let server = Server::start(self.service, self.options.clone()).await.map_err(failed)?;
            let proxy = Arc::new(Proxy::start(server.port()).await?);
            self.running = Some((server, proxy));
        }
        self.connect().await
    }

    async fn connect(&mut self) -> Result<Arc<dyn Broker>> {
        self.open("user:password@")
    }

    async fn stranger(&mut self) -> Result<Option<Arc<dyn Broker>>> {
        self.open("user:wrong@").map(Some)
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
        let server = self.running()?.0.clone();
        (self.destroy)(server, channel.clone(), subscription.clone()).await?;
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

/// Runs the suite against a server of its own.
pub(crate) fn program(name: &'static str, service: Service, options: Options, destroy: Destroy) -> ExitCode {
    if tidegate_services::skipped(service.service()) {
        return ExitCode::SUCCESS;
    }
    let fixture = || Amqp { name, service, options: options.clone(), destroy, running: None };
    tidegate_conformance::program(|| Box::new(fixture()))
}
