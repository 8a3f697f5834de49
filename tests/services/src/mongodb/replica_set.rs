//! A replica set with several members, for elections.

use std::sync::Arc;

use mongodb::bson::doc;

use super::member::Member;
use super::{Options, admin, set_url};
use crate::offload::offload;
use crate::process::Lifetime;
use crate::{Error, Result};

/// Several servers that elect a primary (after two seconds without one); clones are the same set.
#[derive(Debug, Clone)]
pub struct ReplicaSet(Arc<Vec<Member>>);

impl ReplicaSet {
    /// Starts a set of `size` servers; returns when there is a primary.
    ///
    /// # Errors
    /// The service is missing, or a server did not start.
    pub async fn start(size: usize, options: Options) -> Result<ReplicaSet> {
        if size == 0 {
            return Err(Error::failed("a replica set has at least one member"));
        }
        offload(move || {
            let members = (0..size).map(|_| Member::start(options.clone(), Lifetime::Process));
            let set = ReplicaSet(Arc::new(members.collect::<Result<_>>()?));
            admin::initiate(&set.ports())?;
            Ok(set)
        })
        .await
    }

    /// The URL with every member.
    pub fn url(&self) -> String {
        self.database_url("")
    }

    /// The URL with every member and a database.
    pub fn database_url(&self, database: &str) -> String {
        set_url(&self.ports(), database)
    }

    /// The ports of the members.
    pub fn ports(&self) -> Vec<u16> {
        self.0.iter().map(Member::port).collect()
    }

    /// The place of the primary in [`ReplicaSet::ports`]; waits for one.
    ///
    /// # Errors
    /// There is none after half a minute.
    pub async fn primary(&self) -> Result<usize> {
        let set = self.clone();
        offload(move || admin::wait_for_primary(&set.ports())).await
    }

    /// Lets the primary step down, so that another member is elected; returns the new one's place.
    ///
    /// # Errors
    /// There was no primary, or there is none afterwards.
    pub async fn step_down(&self) -> Result<usize> {
        let set = self.clone();
        offload(move || {
            let ports = set.ports();
            let old = admin::wait_for_primary(&ports)?;
            admin::command(ports[old], doc! { "replSetStepDown": 10, "force": true })?;
            admin::wait_for_primary(&ports)
        })
        .await
    }

    /// Crashes the primary and returns its place; the others elect a new one.
    ///
    /// # Errors
    /// There was no primary.
    pub async fn kill_primary(&self) -> Result<usize> {
        let set = self.clone();
        offload(move || {
            let primary = admin::wait_for_primary(&set.ports())?;
            set.0[primary].crash();
            Ok(primary)
        })
        .await
    }

    /// Starts the member at `place` again.
    ///
    /// # Errors
    /// There is no such member, or it did not start.
    pub async fn restart(&self, place: usize) -> Result<()> {
        let set = self.clone();
        offload(move || {
            let member = set.0.get(place).ok_or_else(|| Error::failed(format!("no member {place}")))?;
            member.stop();
            member.run_process()
        })
        .await
    }
}
