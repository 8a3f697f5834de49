//! The cases of brokers. Their ids stand on the pages of the traits.

mod consume;
mod hops;
mod life;
mod look;
mod network;
mod order;
mod publish;
pub(crate) mod refusal;
mod service;
mod worker;

use crate::case::Case;

/// A line of the table.
macro_rules! case {
    ($id:literal, $rule:literal, [$($requires:literal),*], $run:path) => {
        Case { id: $id, rule: $rule, requires: &[$($requires),*], run: |context| Box::pin($run(context)) }
    };
}

/// Every case, in the order in which they run.
pub const CASES: &[Case] = &[
    case!("A1", "every confirmed message is delivered", ["competing_consumers"], publish::all_arrive),
    case!("A2", "answers come in the order of the messages", [], publish::answers_in_order),
    case!("A3", "a refused message is named by its place", [], publish::refusal_by_place),
    case!("A4", "a missing target is refused", [], publish::missing_target),
    case!("A5", "a message beyond the size is refused, its neighbours are stored", [], publish::too_large),
    case!(
        "A6",
        "a lost answer is unknown; publishing again has one effect",
        ["dedupe"],
        publish::lost_answer
    ),
    case!("A7", "close leaves nothing to be stored later", [], publish::close_flushes),
    case!("A8", "a full channel pushes back", [], publish::back_pressure),
    case!("A9", "everything arrives byte for byte", [], publish::round_trip),
    case!("A10", "what was confirmed survives the kill of the broker", [], publish::survives_kill),
    case!("B11", "members share the messages", ["competing_consumers"], consume::members_share),
    case!("B12", "each subscription gets every message", [], consume::each_gets_all),
    case!(
        "B13",
        "a subscriber that was away gets what it missed",
        ["durable_subscriptions"],
        consume::offline
    ),
    case!("B14", "unregistering frees what was kept", ["unregister"], consume::unregister),
    case!(
        "B15",
        "what a crashed consumer had comes again, as a higher attempt",
        ["delivery_count"],
        consume::crash
    ),
    case!("B16", "settling twice is done or lost, and does nothing", [], consume::settle_twice),
    case!("B17", "after a reconnect settling is lost and the message comes again", [], consume::reconnect),
    case!("B18", "what is settled never comes again", ["durable_subscriptions"], consume::settled_stays),
    case!("B19", "a release is no attempt", ["delivery_count", "retry_later"], consume::release_is_free),
    case!("B20", "a receive that is dropped loses nothing", [], consume::cancelled_receive),
    case!("B21", "no more is in hand than the window says", [], consume::window),
    case!("B22", "channels with names that look alike are apart", [], consume::names_apart),
    case!("B23", "a subscription begins where it says", ["replay"], consume::starts),
    case!("B62", "whoever looks sees what is kept, and takes nothing", ["browsing"], look::browse),
    case!("B63", "all channels and subscriptions are listed", ["listing"], look::list),
    case!("C24", "a key's messages come in order", ["order_by_key"], order::plain),
    case!("C25", "order holds while handlers fail", ["order_by_key", "retry_later"], order::failing),
    case!(
        "C26",
        "order holds while members come and go",
        ["order_by_key", "competing_consumers"],
        order::rebalance
    ),
    case!("C27", "order holds through reconnects and a restart", ["order_by_key"], order::reconnect),
    case!(
        "C28",
        "a key that waits does not slow the others",
        ["order_by_key", "retry_later"],
        order::blocked_key
    ),
    case!("C29", "publishing again does not invert", ["order_by_key", "dedupe"], order::publish_again),
    case!("C30", "the lane of a key is the same on every broker", ["order_by_key"], order::lane_map),
    case!("D31", "a retry comes neither early nor late", ["retry_later"], service::retries),
    case!("D32", "each of several delays ends at its own time", ["retry_later"], service::delays),
    case!(
        "D33",
        "what fails too often is a dead letter once, with its cause",
        ["retry_later", "delivery_count"],
        service::dead_once
    ),
    case!(
        "D34",
        "what cannot be a dead letter is not settled",
        ["retry_later", "unregister"],
        service::no_grave
    ),
    case!(
        "D35",
        "a message that kills its handlers is given up",
        ["retry_later", "delivery_count"],
        service::killer
    ),
    case!("D36", "what cannot be read is put away as it came", ["retry_later"], service::undecodable),
    case!("D37", "a dead letter is replayed as it was, in its order", ["retry_later"], service::replay),
    case!(
        "D38",
        "a delivery can be kept for longer",
        ["lock_extend", "competing_consumers"],
        consume::extend
    ),
    case!(
        "D39",
        "who is not heard of for longer than its lease loses its lanes, and settles nothing",
        ["order_by_key"],
        network::hung
    ),
    case!("E40", "what is open goes on behind a restart, and nothing is lost", [], life::restart),
    case!("E41", "nothing is lost or out of order over a network that fails", [], network::fails),
    case!("E42", "a server that is absent is told soon, and used when it is there", [], network::absent),
    case!(
        "E43",
        "who may not come in is told at once, and a wrong password is not tried again",
        [],
        network::stranger
    ),
    case!("E44", "who uses a channel that somebody removed is told so", [], life::removed),
    case!("E45", "who cannot connect asks seldom", [], network::storm),
    case!("F47", "a service that is drained has handled or gives back", ["retry_later"], service::drain),
    case!("F48", "consumers may be closed at once", ["competing_consumers"], service::close_at_once),
    case!("F49", "what a dropped service was at is done by another", [], service::dropped),
    case!("F50", "nothing stays of what was closed", [], life::nothing_stays),
    case!("F51", "many channels with one message each", [], service::many_channels),
    case!("G52", "a dead letter is put away", ["dead_letter"], consume::dead_letter_away),
    case!("G54", "what is not as declared is named, and left as it is", [], life::drift),
    case!("H56", "what is urgent overtakes, and nothing starves", [], hops::priority),
    case!("H57", "questions get their own replies, in time or not at all", ["retry_later"], service::calls),
    case!("H58", "a bridge makes one channel of two", ["competing_consumers"], hops::bridge),
    case!("H60", "a trace goes through every hop", [], hops::trace),
    case!("H61", "the counts of a service add up", ["retry_later", "delivery_count"], service::balance),
];
