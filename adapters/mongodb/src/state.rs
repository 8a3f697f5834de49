//! Records of flows.

use std::time::Duration;

use async_trait::async_trait;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ReturnDocument;
use tidegate_core::port::{Lease, StateStore, Stored};
use tidegate_core::{FlowName, Result};

use crate::checkpoint;
use crate::error::{DUPLICATE_KEY, During, number};
use crate::store::MongoStore;

const STATE: &str = "tidegate.state";
const LEASE: &str = "tidegate.lease";

fn id(flow: &FlowName, key: &str) -> Document {
    doc! { "flow": flow.as_str(), "key": key }
}

#[async_trait]
impl StateStore for MongoStore {
    async fn get(&self, flow: &FlowName, key: &str) -> Result<Option<Stored>> {
        let collection = self.database().await?.collection::<Document>(STATE);
        let found = collection.find_one(doc! { "_id": id(flow, key) }).await.during("read a record")?;
        Ok(found.map(|found| Stored {
            version: u64::try_from(found.get_i64("version").unwrap_or(0)).unwrap_or(0),
            value: found.get_str("value").unwrap_or_default().to_owned(),
        }))
    }

    async fn put(&self, flow: &FlowName, key: &str, value: &str, expected: u64) -> Result<Option<u64>> {
        let collection = self.database().await?.collection::<Document>(STATE);
        let version = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let next = expected + 1;
        if expected == 0 {
            let new = doc! { "_id": id(flow, key), "version": version(next), "value": value };
            return match collection.insert_one(new).await {
                Ok(_) => Ok(Some(next)),
                Err(error) if number(&error) == Some(DUPLICATE_KEY) => Ok(None),
                Err(error) => Err(crate::error::from_driver(error, "write a record")),
            };
        }
        let done = collection
            .update_one(
                doc! { "_id": id(flow, key), "version": version(expected) },
                doc! { "$set": { "version": version(next), "value": value } },
            )
            .await
            .during("write a record")?;
        Ok((done.matched_count == 1).then_some(next))
    }

    async fn flows(&self) -> Result<Vec<FlowName>> {
        let collection = self.database().await?.collection::<Document>(STATE);
        let names = collection.distinct("_id.flow", doc! {}).await.during("list flows")?;
        let mut flows = names
            .into_iter()
            .map(|name| FlowName::new(name.as_str().unwrap_or_default()))
            .collect::<Result<Vec<_>>>()?;
        flows.sort();
        Ok(flows)
    }

    async fn forget(&self, flow: &FlowName) -> Result<()> {
        let database = self.database().await?;
        // The checkpoint goes first: without it nobody can commit, so that nothing comes back.
        for (name, field) in
            checkpoint::COLLECTIONS.iter().map(|name| (*name, "_id.flow")).chain([(STATE, "_id.flow")])
        {
            let filter = doc! { "$or": [{ field: flow.as_str() }, { "_id": flow.as_str() }] };
            let collection = database.collection::<Document>(name);
            collection.delete_many(filter).await.during("forget a flow")?;
        }
        let lease = database.collection::<Document>(LEASE);
        lease.delete_one(doc! { "_id": flow.as_str() }).await.during("forget a flow")?;
        Ok(())
    }

    async fn hold(&self, flow: &FlowName, holder: &str, time: Duration) -> Result<Lease> {
        let collection = self.database().await?.collection::<Document>(LEASE);
        let millis = i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        // One update decides and takes: a filter with the server's clock may not insert.
        let free = doc! { "$or": [
            { "$lte": ["$holder", Bson::Null] },
            { "$eq": ["$holder", { "$literal": holder }] },
            { "$lte": ["$until", "$$NOW"] },
        ] };
        let until = doc! { "$add": ["$$NOW", Bson::Int64(millis)] };
        let taken = vec![doc! { "$set": {
            "holder": { "$cond": [free.clone(), { "$literal": holder }, "$holder"] },
            "until": { "$cond": [free, until, "$until"] },
            "renewed": { "$eq": ["$holder", { "$literal": holder }] },
        } }];
        let now = collection
            .find_one_and_update(doc! { "_id": flow.as_str() }, taken)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await
            .during("take the lease")?;
        let now = now.and_then(|now| Some((now.get_str("holder").ok()?.to_owned(), now.get_bool("renewed"))));
        match now {
            Some((now, renewed)) if now == holder => {
                Ok(Lease { holder: holder.to_owned(), time, renewed: renewed.unwrap_or(false) })
            }
            now => {
                let other = now.map_or_else(|| "another runner".to_owned(), |(other, _)| other);
                Err(Lease::held_by(other))
            }
        }
    }

    async fn release(&self, flow: &FlowName, holder: &str) -> Result<()> {
        let collection = self.database().await?.collection::<Document>(LEASE);
        collection
            .delete_one(doc! { "_id": flow.as_str(), "holder": holder })
            .await
            .during("give the lease up")?;
        Ok(())
    }
}
