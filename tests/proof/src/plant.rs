//! The bugs that a proof has to catch: those in the engine, and those of an adapter.

use tidegate_flow::plant::Bug;

/// A bug of an adapter, planted at the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortBug {
    /// A log position is taken for the proof of what a chunk shows.
    PlainWatermark,
    /// A cell that was not sent is delivered as null.
    UnchangedAsNull,
    /// The checkpoint is durable before the effect.
    CheckpointBeforeEffect,
    /// A feed goes on when a table gets a column, and leaves it out.
    NewColumnCut,
}

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    Engine(Bug),
    Port(PortBug),
}

/// All of them, with the names that reports use.
pub(crate) const PLANTS: &[(&str, Plant)] = &[
    ("no overlay", Plant::Engine(Bug::NoOverlay)),
    ("window forgets deletes", Plant::Engine(Bug::WindowForgetsDeletes)),
    ("stale window after crash", Plant::Engine(Bug::StaleWindowAfterCrash)),
    ("acknowledge what is only delivered", Plant::Engine(Bug::AcknowledgeDelivered)),
    ("moves not completed", Plant::Engine(Bug::MovesNotCompleted)),
    ("recopy keeps rows", Plant::Engine(Bug::RecopyKeepsRows)),
    ("made too early", Plant::Engine(Bug::MadeTooEarly)),
    ("filter forgets rows", Plant::Engine(Bug::FilterForgetsRows)),
    ("any session", Plant::Engine(Bug::AnySession)),
    ("any reply", Plant::Engine(Bug::AnyReply)),
    ("default forgotten", Plant::Engine(Bug::DefaultForgotten)),
    ("equal key kept", Plant::Engine(Bug::EqualKeyKept)),
    ("holes forgotten", Plant::Engine(Bug::HolesForgotten)),
    ("holes filled stale", Plant::Engine(Bug::HolesFilledStale)),
    ("new column cut", Plant::Port(PortBug::NewColumnCut)),
    ("plain watermark", Plant::Port(PortBug::PlainWatermark)),
    ("unchanged as null", Plant::Port(PortBug::UnchangedAsNull)),
    ("checkpoint before effect", Plant::Port(PortBug::CheckpointBeforeEffect)),
];
