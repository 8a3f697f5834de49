//! What every adapter has to do, done by Artemis.

mod fixture;

use std::process::ExitCode;

use fe2o3_amqp::types::messaging::{ApplicationProperties, Message};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue};
use fe2o3_amqp::{Connection, Sender, Session};
use fixture::failed;
use tidegate_core::error::code;
use tidegate_core::{Channel, Error, Result, Subscription};
use tidegate_services::broker::{Broker, Options, Server};

fn main() -> ExitCode {
    // As it is set up at first, a member that is not heard of keeps its lanes for a minute.
    let options =
        Options::default().with_setting("acceptorConfigurations.all.extraParams.amqpIdleTimeout", 4_000);
    fixture::program("artemis", Broker::Artemis, options, |server, channel, subscription| {
        Box::pin(destroy(server, channel, subscription))
    })
}

/// Over the server's management.
async fn destroy(server: Server, channel: Channel, subscription: Subscription) -> Result<()> {
    let url = server.url().replace("artemis://", "amqp://");
    let mut connection = Connection::open("console", &*url).await.map_err(failed)?;
    let mut session = Session::begin(&mut connection).await.map_err(failed)?;
    let mut sender = Sender::attach(&mut session, "s", "activemq.management").await.map_err(failed)?;
    for lane in 0..channel.lanes {
        let queue = format!("tidegate.{}/{}/{lane}", channel.name, subscription.name);
        let named = [("_AMQ_ResourceName", "broker"), ("_AMQ_OperationName", "destroyQueue")];
        let named = named.map(|(name, value)| (name.to_owned(), SimpleValue::from(value.to_owned())));
        let message = Message::builder()
            .application_properties(ApplicationProperties(OrderedMap::from_iter(named)))
            .value(format!(r#"["{queue}",true,true]"#))
            .build();
        let sent = sender.send(message).await.map_err(failed)?;
        sent.accepted_or_else(|_| Error::new(code::INTERNAL, "the server did not take it"))?;
    }
    connection.close().await.map_err(failed)
}
