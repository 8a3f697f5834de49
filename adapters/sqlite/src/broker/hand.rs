//! What is taken in hand, and what becomes of it. Every job looks first whether the lane is still its member's.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments as _, Row as _, SqliteConnection};
use tidegate_broker::seats::Member;
use tidegate_broker::unsettled::End;
use tidegate_core::error::code;
use tidegate_core::{Error, Lane, Result};

use super::retain::forget;
use super::writer::{Job, list, signed, unsigned};
use crate::error::During;
use crate::statement::sql;

/// How many rows one statement writes.
const STEPS: [usize; 4] = [256, 64, 8, 1];

/// The lanes of a member, by epoch.
async fn owned(
    connection: &mut SqliteConnection,
    subscription: i64,
    me: Member,
) -> Result<BTreeMap<Lane, u64>> {
    let rows = sqlx::query("SELECT lane, epoch FROM tidegate_seat WHERE subscription = ? AND owner = ?")
        .bind(subscription)
        .bind(signed(me))
        .fetch_all(connection)
        .await
        .during("look whose the lanes are")?;
    Ok(rows.iter().map(|row| (Lane(row.get(0)), unsigned(row.get(1)))).collect())
}

/// What is taken of one lane.
#[derive(Debug, Default)]
pub(crate) struct HandLane {
    pub(crate) epoch: u64,
    /// Everything up to here is given to the lane from now on.
    pub(crate) read_to: u64,
    /// New ones, and whether they are in hand or have to wait.
    pub(crate) new: Vec<(u64, bool)>,
    /// Those that come again.
    pub(crate) again: Vec<u64>,
}

/// Notes what is taken in hand; the answer is the lanes that are not the member's any more.
pub(crate) struct Hand {
    pub(crate) subscription: i64,
    pub(crate) me: Member,
    pub(crate) lanes: BTreeMap<Lane, HandLane>,
}

#[async_trait]
impl Job for Hand {
    type Answer = BTreeSet<Lane>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<BTreeSet<Lane>> {
        let owned = owned(connection, self.subscription, self.me).await?;
        let (mut lost, mut new, mut again) = (BTreeSet::new(), Vec::new(), Vec::new());
        for (lane, hand) in &self.lanes {
            if owned.get(lane) != Some(&hand.epoch) {
                lost.insert(*lane);
                continue;
            }
            again.extend(hand.again.iter().copied());
            if hand.new.is_empty() {
                continue;
            }
            new.extend(hand.new.iter().map(|(place, in_hand)| (*place, *lane, *in_hand)));
            sqlx::query("UPDATE tidegate_seat SET read_to = ? WHERE subscription = ? AND lane = ?")
                .bind(signed(hand.read_to))
                .bind(self.subscription)
                .bind(lane.0)
                .execute(&mut *connection)
                .await
                .during("keep the place of a lane")?;
        }
        self.insert(connection, &new).await?;
        if !again.is_empty() {
            sqlx::query(
                "UPDATE tidegate_unsettled SET in_hand = 1
                 WHERE subscription = ? AND place IN (SELECT value FROM json_each(?))",
            )
            .bind(self.subscription)
            .bind(list(again))
            .execute(connection)
            .await
            .during("take messages in hand again")?;
        }
        Ok(lost)
    }
}

impl Hand {
    async fn insert(&self, connection: &mut SqliteConnection, new: &[(u64, Lane, bool)]) -> Result<()> {
        let mut rest = new;
        while !rest.is_empty() {
            let step = STEPS.into_iter().find(|step| *step <= rest.len()).unwrap_or(1);
            let (now, later) = rest.split_at(step);
            rest = later;
            let mut arguments = SqliteArguments::default();
            for (place, lane, in_hand) in now {
                arguments
                    .add(self.subscription)
                    .and_then(|()| arguments.add(signed(*place)))
                    .and_then(|()| arguments.add(lane.0))
                    .and_then(|()| arguments.add(i64::from(*in_hand)))
                    .map_err(|error| Error::new(code::INTERNAL, "a place cannot be bound").because(error))?;
            }
            let text = format!(
                "INSERT INTO tidegate_unsettled(subscription, place, lane, attempts, due, in_hand) VALUES {}",
                vec!["(?, ?, ?, 0, 0, ?)"; step].join(", ")
            );
            sqlx::query_with(sql(text), arguments)
                .execute(&mut *connection)
                .await
                .during("take messages in hand")?;
        }
        Ok(())
    }
}

/// Settles deliveries; the answer is the lanes that are not the member's any more.
pub(crate) struct SettleJob {
    pub(crate) channel: i64,
    pub(crate) subscription: i64,
    pub(crate) me: Member,
    /// Lane, epoch and place, and how the delivery ends.
    pub(crate) ends: Vec<(Lane, u64, u64, End)>,
    pub(crate) now: i64,
}

#[async_trait]
impl Job for SettleJob {
    type Answer = BTreeSet<Lane>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<BTreeSet<Lane>> {
        let owned = owned(connection, self.subscription, self.me).await?;
        let (mut lost, mut done, mut untried) = (BTreeSet::new(), Vec::new(), Vec::new());
        for (lane, epoch, place, end) in &self.ends {
            if owned.get(lane) != Some(epoch) {
                lost.insert(*lane);
                continue;
            }
            match end {
                End::Done => done.push(*place),
                End::Untried => untried.push(*place),
                End::Failed { due } => {
                    sqlx::query(
                        "UPDATE tidegate_unsettled SET attempts = attempts + 1, due = ?, in_hand = 0
                         WHERE subscription = ? AND place = ?",
                    )
                    .bind(*due)
                    .bind(self.subscription)
                    .bind(signed(*place))
                    .execute(&mut *connection)
                    .await
                    .during("let a message come again")?;
                }
            }
        }
        if !untried.is_empty() {
            sqlx::query(
                "UPDATE tidegate_unsettled SET in_hand = 0, due = 0
                 WHERE subscription = ? AND place IN (SELECT value FROM json_each(?))",
            )
            .bind(self.subscription)
            .bind(list(untried))
            .execute(&mut *connection)
            .await
            .during("give messages back")?;
        }
        if !done.is_empty() {
            sqlx::query(
                "DELETE FROM tidegate_unsettled
                 WHERE subscription = ? AND place IN (SELECT value FROM json_each(?))",
            )
            .bind(self.subscription)
            .bind(list(done.iter().copied()))
            .execute(&mut *connection)
            .await
            .during("settle messages")?;
            forget(connection, self.channel, done, self.now).await?;
        }
        Ok(lost)
    }
}

/// Keeps lanes for longer; the answer is the lanes that are not the member's any more.
pub(crate) struct Extend {
    pub(crate) subscription: i64,
    pub(crate) me: Member,
    pub(crate) lanes: BTreeMap<Lane, u64>,
    pub(crate) until: i64,
}

#[async_trait]
impl Job for Extend {
    type Answer = BTreeSet<Lane>;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<BTreeSet<Lane>> {
        let mut lost = BTreeSet::new();
        for (lane, epoch) in &self.lanes {
            let kept = sqlx::query(
                "UPDATE tidegate_seat SET held_until = max(held_until, ?1),
                     give_up_by = CASE WHEN give_up_by IS NULL THEN NULL ELSE max(give_up_by, ?1) END
                 WHERE subscription = ?2 AND lane = ?3 AND owner = ?4 AND epoch = ?5",
            )
            .bind(self.until)
            .bind(self.subscription)
            .bind(lane.0)
            .bind(signed(self.me))
            .bind(signed(*epoch))
            .execute(&mut *connection)
            .await
            .during("keep a lane for longer")?;
            if kept.rows_affected() == 0 {
                lost.insert(*lane);
            }
        }
        Ok(lost)
    }
}
