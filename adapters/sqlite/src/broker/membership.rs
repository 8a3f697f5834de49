//! Who has which lane. Every step is a transaction; whoever was away too long finds another epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::{Row as _, SqliteConnection};
use tidegate_broker::seats::{Member, Seat, Step, next_epoch, steps};
use tidegate_broker::unsettled::Entry;
use tidegate_core::{Lane, Result};

use super::writer::{Job, signed, unsigned};
use crate::error::During;

/// The table as it is: seats by lane and members in order. No seats: the subscription is gone.
pub(crate) async fn table(
    connection: &mut SqliteConnection,
    subscription: i64,
    now: i64,
) -> Result<(Vec<Seat>, Vec<Member>)> {
    let seats = sqlx::query(
        "SELECT lane, owner, epoch, give_up_by FROM tidegate_seat WHERE subscription = ? ORDER BY lane",
    )
    .bind(subscription)
    .fetch_all(&mut *connection)
    .await
    .during("read who has which lane")?;
    let members: Vec<i64> =
        sqlx::query_scalar("SELECT id FROM tidegate_member WHERE subscription = ? AND until > ? ORDER BY id")
            .bind(subscription)
            .bind(now)
            .fetch_all(connection)
            .await
            .during("read who is a member")?;
    let seat = |row: &sqlx::sqlite::SqliteRow| Seat {
        lane: Lane(row.get(0)),
        owner: row.get::<Option<i64>, _>(1).map(unsigned),
        epoch: unsigned(row.get(2)),
        give_up_by: row.get(3),
    };
    Ok((seats.iter().map(seat).collect(), members.into_iter().map(unsigned).collect()))
}

/// A lane that was taken, with everything that is not settled of it.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) lane: Lane,
    pub(crate) epoch: u64,
    pub(crate) read_to: u64,
    pub(crate) entries: Vec<(u64, Entry)>,
}

/// Does what a member has to do: gives up what it was asked for, takes what is free, asks for what it lacks.
pub(crate) struct Tend {
    pub(crate) subscription: i64,
    pub(crate) me: Member,
    /// The lanes that the member knows to be its own, by epoch, and whether nothing of them is in hand.
    pub(crate) held: BTreeMap<Lane, (u64, bool)>,
    pub(crate) now: i64,
    pub(crate) until: i64,
    pub(crate) grace: i64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Tended {
    pub(crate) is_gone: bool,
    pub(crate) taken: Vec<Taken>,
    /// Given up. Whatever was in hand is somebody else's.
    pub(crate) given_up: Vec<Lane>,
}

#[async_trait]
impl Job for Tend {
    type Answer = Tended;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Tended> {
        let mut tended = Tended::default();
        sqlx::query("DELETE FROM tidegate_member WHERE subscription = ? AND until <= ? AND id <> ?")
            .bind(self.subscription)
            .bind(self.now)
            .bind(signed(self.me))
            .execute(&mut *connection)
            .await
            .during("forget members")?;
        // Somebody else may have taken this member for dead.
        sqlx::query(
            "INSERT INTO tidegate_member(id, subscription, until)
             SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM tidegate_subscription WHERE id = ?2)
             ON CONFLICT (id) DO UPDATE SET until = max(until, excluded.until)",
        )
        .bind(signed(self.me))
        .bind(self.subscription)
        .bind(self.until)
        .execute(&mut *connection)
        .await
        .during("renew a lease")?;
        let (mut seats, members) = table(connection, self.subscription, self.now).await?;
        if seats.is_empty() {
            return Ok(Tended { is_gone: true, ..tended });
        }
        for seat in &mut seats {
            let is_mine = seat.owner == Some(self.me);
            let held = self.held.get(&seat.lane).filter(|(epoch, _)| is_mine && *epoch == seat.epoch);
            match (held, seat.give_up_by) {
                (Some((_, is_free)), Some(by)) if *is_free || by <= self.now => {
                    self.vacate(connection, seat, true).await?;
                    tended.given_up.push(seat.lane);
                }
                // Its own, and not known to it: somebody cut in, or an answer was lost.
                (None, _) if is_mine => self.vacate(connection, seat, true).await?,
                _ => {}
            }
        }
        for step in steps(self.me, &members, &seats, self.now) {
            match step {
                Step::Take(lane) => {
                    let Some(seat) = seats.iter_mut().find(|seat| seat.lane == lane) else { continue };
                    self.vacate(connection, seat, true).await?;
                    tended.taken.push(self.take(connection, lane).await?);
                }
                Step::Ask(lane) => {
                    sqlx::query(
                        "UPDATE tidegate_seat SET give_up_by = max(held_until, ?)
                         WHERE subscription = ? AND lane = ?",
                    )
                    .bind(self.now.saturating_add(self.grace))
                    .bind(self.subscription)
                    .bind(lane.0)
                    .execute(&mut *connection)
                    .await
                    .during("ask for a lane")?;
                }
            }
        }
        Ok(tended)
    }
}

impl Tend {
    async fn vacate(&self, connection: &mut SqliteConnection, seat: &mut Seat, tried: bool) -> Result<()> {
        vacate(connection, self.subscription, seat.lane, tried).await?;
        (seat.owner, seat.give_up_by) = (None, None);
        Ok(())
    }

    async fn take(&self, connection: &mut SqliteConnection, lane: Lane) -> Result<Taken> {
        let row = sqlx::query(
            "UPDATE tidegate_seat SET owner = ?, epoch = max(epoch + 1, ?) WHERE subscription = ? AND lane = ?
             RETURNING epoch, read_to",
        )
        .bind(signed(self.me))
        .bind(signed(next_epoch(0, self.now)))
        .bind(self.subscription)
        .bind(lane.0)
        .fetch_one(&mut *connection)
        .await
        .during("take a lane")?;
        let entries = sqlx::query(
            "SELECT u.place, u.attempts, u.due, m.subject FROM tidegate_unsettled AS u
             JOIN tidegate_message AS m ON m.place = u.place
             WHERE u.subscription = ? AND u.lane = ? ORDER BY u.place",
        )
        .bind(self.subscription)
        .bind(lane.0)
        .fetch_all(connection)
        .await
        .during("read what is not settled")?;
        let entry = |row: &sqlx::sqlite::SqliteRow| {
            let key: Option<String> = row.get(3);
            let entry =
                Entry { key: key.map(Arc::from), attempts: row.get(1), due: row.get(2), delivery: None };
            (unsigned(row.get(0)), entry)
        };
        Ok(Taken {
            lane,
            epoch: unsigned(row.get(0)),
            read_to: unsigned(row.get(1)),
            entries: entries.iter().map(entry).collect(),
        })
    }
}

/// Frees a seat. What is in hand was tried, or not.
async fn vacate(connection: &mut SqliteConnection, subscription: i64, lane: Lane, tried: bool) -> Result<()> {
    sqlx::query(
        "UPDATE tidegate_seat SET owner = NULL, give_up_by = NULL, held_until = 0
         WHERE subscription = ? AND lane = ?",
    )
    .bind(subscription)
    .bind(lane.0)
    .execute(&mut *connection)
    .await
    .during("give up a lane")?;
    sqlx::query(
        "UPDATE tidegate_unsettled SET attempts = attempts + ?, in_hand = 0, due = 0
         WHERE subscription = ? AND lane = ? AND in_hand",
    )
    .bind(i64::from(tried))
    .bind(subscription)
    .bind(lane.0)
    .execute(connection)
    .await
    .during("give up what is in hand")?;
    Ok(())
}

/// Ends a membership.
pub(crate) struct Leave {
    pub(crate) subscription: i64,
    pub(crate) me: Member,
    /// Whether what is in hand counts as tried: the member did not close, but was dropped.
    pub(crate) tried: bool,
}

#[async_trait]
impl Job for Leave {
    type Answer = ();

    async fn run(&self, connection: &mut SqliteConnection) -> Result<()> {
        let lanes: Vec<u32> =
            sqlx::query_scalar("SELECT lane FROM tidegate_seat WHERE subscription = ? AND owner = ?")
                .bind(self.subscription)
                .bind(signed(self.me))
                .fetch_all(&mut *connection)
                .await
                .during("look for lanes to give up")?;
        for lane in lanes {
            vacate(connection, self.subscription, Lane(lane), self.tried).await?;
        }
        sqlx::query("DELETE FROM tidegate_member WHERE id = ?")
            .bind(signed(self.me))
            .execute(connection)
            .await
            .during("leave a subscription")?;
        Ok(())
    }
}
