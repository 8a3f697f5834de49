//! Channels and subscriptions: what is there, what is to be there, and what is to go.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use tidegate_core::error::code;
use tidegate_core::{Apply, Channel, Difference, Error, Keep, Name, Result, Start, Subscription, Topology};

use super::retain::Sweep;
use super::writer::{Job, micros, signed, unsigned};
use crate::error::During;

/// A channel as it is there.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) id: i64,
    pub(crate) channel: Channel,
}

pub(crate) async fn channel(connection: &mut SqliteConnection, name: &Name) -> Result<Option<Found>> {
    let row =
        sqlx::query("SELECT id, lanes, keep, messages_max, bytes_max FROM tidegate_channel WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(connection)
            .await
            .during("look for a channel")?;
    let Some(row) = row else { return Ok(None) };
    let keep = match row.get::<Option<i64>, _>(2) {
        None => Keep::UntilSettled,
        Some(keep) => Keep::AtLeast(Duration::from_micros(unsigned(keep))),
    };
    let channel = Channel::new(name.as_str())?
        .with_lanes(row.get(1))
        .with_keep(keep)
        .with_limits(unsigned(row.get(3)), unsigned(row.get(4)));
    Ok(Some(Found { id: row.get(0), channel }))
}

/// Everything that is there.
pub(crate) async fn all(connection: &mut SqliteConnection) -> Result<Topology> {
    let operation = "list channels and subscriptions";
    // A subscription without seats is being unregistered.
    let rows = sqlx::query(
        "SELECT c.name, b.name FROM tidegate_channel AS c
         LEFT JOIN tidegate_subscription AS b ON b.channel = c.id
             AND EXISTS (SELECT 1 FROM tidegate_seat AS s WHERE s.subscription = b.id)
         ORDER BY c.name, b.name",
    );
    let rows = rows.fetch_all(&mut *connection).await.during(operation)?;
    let mut topology = Topology::default();
    for row in rows {
        let name = Name::new(row.get::<String, _>(0))?;
        if topology.channels.last().is_none_or(|last| last.name != name) {
            topology.channels.extend(channel(connection, &name).await?.map(|found| found.channel));
        }
        let Some(of) = topology.channels.last().filter(|last| last.name == name) else { continue };
        if let Some(subscription) = row.get::<Option<String>, _>(1) {
            topology.subscriptions.push(Subscription::new(of, subscription)?);
        }
    }
    Ok(topology)
}

/// A subscription that is there. One that was being unregistered when its process died is removed to the end first.
async fn subscription(
    connection: &mut SqliteConnection,
    found: &Found,
    name: &Name,
    now: i64,
) -> Result<Option<i64>> {
    let Some((id, is_whole)) = look(connection, found.id, name).await? else { return Ok(None) };
    if is_whole {
        return Ok(Some(id));
    }
    let mut after = 0;
    while let Some(next) = (Sweep { channel: found.id, after, now }).run(connection).await? {
        after = next;
    }
    Removed { subscription: id }.run(connection).await?;
    Ok(None)
}

/// A subscription's number, and whether it still has its lanes.
async fn look(connection: &mut SqliteConnection, channel: i64, name: &Name) -> Result<Option<(i64, bool)>> {
    let row = sqlx::query(
        "SELECT id, EXISTS (SELECT 1 FROM tidegate_seat AS s WHERE s.subscription = b.id)
         FROM tidegate_subscription AS b WHERE channel = ? AND name = ?",
    )
    .bind(channel)
    .bind(name.as_str())
    .fetch_optional(connection)
    .await
    .during("look for a subscription")?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

pub(crate) fn missing(channel: &Name) -> Error {
    Difference::ChannelMissing(channel.clone()).error()
}

/// Compares or makes a topology.
pub(crate) struct ApplyTopology {
    pub(crate) topology: Topology,
    pub(crate) mode: Apply,
    pub(crate) now: i64,
}

#[async_trait]
impl Job for ApplyTopology {
    type Answer = Vec<Difference>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for wanted in &self.topology.channels {
            match channel(connection, &wanted.name).await? {
                Some(found) => differences.extend(Difference::between(wanted, &found.channel)),
                None => {
                    differences.push(Difference::ChannelMissing(wanted.name.clone()));
                    if self.mode == Apply::Create {
                        create(connection, wanted).await?;
                    }
                }
            }
        }
        if self.mode == Apply::Create {
            let differs = |d: &&Difference| matches!(d, Difference::ChannelDiffers { .. });
            if let Some(difference) = differences.iter().find(differs) {
                // The error undoes what was made so far.
                return Err(difference.error());
            }
        }
        for wanted in &self.topology.subscriptions {
            let Some(found) = channel(connection, &wanted.channel).await? else {
                let difference = Difference::ChannelMissing(wanted.channel.clone());
                if self.mode == Apply::Create {
                    return Err(difference.error());
                }
                if !differences.contains(&difference) {
                    differences.push(difference);
                }
                continue;
            };
            let known = match self.mode {
                Apply::Verify => look(connection, found.id, &wanted.name).await?.map(|(id, _)| id),
                Apply::Create => subscription(connection, &found, &wanted.name, self.now).await?,
            };
            if known.is_none() {
                let (channel, name) = (wanted.channel.clone(), wanted.name.clone());
                differences.push(Difference::SubscriptionMissing { channel, name });
                if self.mode == Apply::Create {
                    register(connection, &found, wanted).await?;
                }
            }
        }
        Ok(differences)
    }
}

async fn create(connection: &mut SqliteConnection, channel: &Channel) -> Result<()> {
    let keep = match channel.keep {
        Keep::UntilSettled => None,
        Keep::AtLeast(time) => Some(micros(time)),
    };
    sqlx::query(
        "INSERT INTO tidegate_channel(name, lanes, keep, messages_max, bytes_max, messages, bytes, removed_to)
         VALUES (?, ?, ?, ?, ?, 0, 0, 0)",
    )
    .bind(channel.name.as_str())
    .bind(channel.lanes)
    .bind(keep)
    .bind(signed(channel.messages_max))
    .bind(signed(channel.bytes_max))
    .execute(connection)
    .await
    .during("create a channel")?;
    Ok(())
}

/// The place behind which something new begins.
pub(crate) async fn place(connection: &mut SqliteConnection, found: &Found, start: &Start) -> Result<u64> {
    let row = sqlx::query(
        "SELECT removed_to, (SELECT last_place FROM tidegate_broker) FROM tidegate_channel WHERE id = ?",
    )
    .bind(found.id)
    .fetch_one(connection)
    .await
    .during("look where the channel is")?;
    let (removed_to, last) = (unsigned(row.get(0)), unsigned(row.get(1)));
    match start {
        Start::Earliest => Ok(0),
        Start::Latest => Ok(last),
        Start::After(position) => match position.to_u64() {
            Some(place) if (removed_to..=last).contains(&place) => Ok(place),
            _ => {
                let text = format!("channel {} cannot begin after position {position}", found.channel.name);
                Err(Error::new(code::POSITION_GONE, text).with("position", position))
            }
        },
    }
}

async fn register(connection: &mut SqliteConnection, found: &Found, wanted: &Subscription) -> Result<i64> {
    let read_to = place(connection, found, &wanted.start).await?;
    let id = sqlx::query("INSERT INTO tidegate_subscription(channel, name) VALUES (?, ?)")
        .bind(found.id)
        .bind(wanted.name.as_str())
        .execute(&mut *connection)
        .await
        .during("register a subscription")?
        .last_insert_rowid();
    for lane in 0..found.channel.lanes {
        sqlx::query(
            "INSERT INTO tidegate_seat(subscription, lane, owner, epoch, give_up_by, held_until, read_to)
             VALUES (?, ?, NULL, 0, NULL, 0, ?)",
        )
        .bind(id)
        .bind(lane)
        .bind(signed(read_to))
        .execute(&mut *connection)
        .await
        .during("register a lane")?;
    }
    Ok(id)
}

/// Makes a new member of a subscription, which is registered if it is not.
pub(crate) struct Join {
    pub(crate) subscription: Subscription,
    pub(crate) now: i64,
    pub(crate) until: i64,
}

/// What a member knows.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) channel: i64,
    pub(crate) subscription: i64,
    pub(crate) member: i64,
}

#[async_trait]
impl Job for Join {
    type Answer = Joined;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Joined> {
        let wanted = &self.subscription;
        let found = channel(connection, &wanted.channel).await?.ok_or_else(|| missing(&wanted.channel))?;
        let subscription = match subscription(connection, &found, &wanted.name, self.now).await? {
            Some(id) => id,
            None => register(connection, &found, wanted).await?,
        };
        let member = sqlx::query("INSERT INTO tidegate_member(subscription, until) VALUES (?, ?)")
            .bind(subscription)
            .bind(self.until)
            .execute(connection)
            .await
            .during("become a member")?
            .last_insert_rowid();
        Ok(Joined { channel: found.id, subscription, member })
    }
}

/// Begins to remove a subscription: nothing is kept for it from here on. The channel is to be swept, then the
/// subscription's name is to be [`Removed`]: until then nobody can register it anew and be given what was not swept yet.
pub(crate) struct Unregister {
    pub(crate) subscription: Subscription,
}

#[async_trait]
impl Job for Unregister {
    /// The channel and the subscription.
    type Answer = Option<(i64, i64)>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Option<(i64, i64)>> {
        let Some(found) = channel(connection, &self.subscription.channel).await? else { return Ok(None) };
        let Some((id, _)) = look(connection, found.id, &self.subscription.name).await? else {
            return Ok(None);
        };
        for text in [
            "DELETE FROM tidegate_unsettled WHERE subscription = ?",
            "DELETE FROM tidegate_seat WHERE subscription = ?",
            "DELETE FROM tidegate_member WHERE subscription = ?",
        ] {
            sqlx::query(text).bind(id).execute(&mut *connection).await.during("remove a subscription")?;
        }
        Ok(Some((found.id, id)))
    }
}

/// Ends the removal of a subscription.
pub(crate) struct Removed {
    pub(crate) subscription: i64,
}

#[async_trait]
impl Job for Removed {
    type Answer = ();

    async fn run(&self, connection: &mut SqliteConnection) -> Result<()> {
        sqlx::query("DELETE FROM tidegate_subscription WHERE id = ?")
            .bind(self.subscription)
            .execute(connection)
            .await
            .during("remove the name of a subscription")?;
        Ok(())
    }
}
