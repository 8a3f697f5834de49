//! A server of any service with its usual options, for programs that run them all.

use std::any::Any;
use std::fmt;

use crate::process::Background;
use crate::service::Kind;
use crate::{Result, Service, broker, mongodb, postgres};

/// A running server; it ends with the value, or with the process.
pub struct Running {
    service: Service,
    url: String,
    _server: Box<dyn Any + Send>,
}

impl Running {
    /// Starts a server of `service`, which is provisioned first. Blocks; must not be called inside a runtime.
    ///
    /// # Errors
    /// The service is missing, or the server did not start.
    pub fn start(service: Service) -> Result<Running> {
        let (url, server): (String, Box<dyn Any + Send>) = match service.kind() {
            Kind::Postgresql => {
                let server = postgres::Server::start_blocking(postgres::Options::default())?;
                (server.url(), Box::new(server))
            }
            Kind::Mongodb => {
                let server = mongodb::Server::start_blocking(mongodb::Options::default())?;
                (server.url(), Box::new(server))
            }
            Kind::Broker(broker) => {
                let server = broker::Server::start_blocking(broker, broker::Options::default())?;
                (server.url(), Box::new(server))
            }
        };
        Ok(Running { service, url, _server: server })
    }

    /// The service.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Where clients find it.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("service", &self.service)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Background {
    /// Starts a server of `service` that goes on after this process. Blocks; must not be called inside a runtime.
    ///
    /// # Errors
    /// The service is missing, or the server did not start.
    pub fn start(service: Service) -> Result<Background> {
        match service.kind() {
            Kind::Postgresql => postgres::Server::start_in_background(postgres::Options::default()),
            Kind::Mongodb => mongodb::Server::start_in_background(mongodb::Options::default()),
            Kind::Broker(broker) => broker::Server::start_in_background(broker, broker::Options::default()),
        }
    }
}
