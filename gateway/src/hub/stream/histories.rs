//! Random histories against the stream: everything that can go wrong between a server and its sockets, in any order.
//!
//! The model is a server with a counter, a log and a subscription whose messages may be lost; readings that arrive late;
//! restarts, rewinds and trimmed logs. Two judges watch. Each member's own view must be a chain, or the member must have been
//! told. And the stream must do its work: it may not tell members to start anew while the log has what they miss.

#![allow(clippy::unwrap_used)]

mod server;
mod world;

use proptest::collection::vec;
use proptest::prelude::*;

use super::Start;
use crate::socket::snapshot::Parts;
pub use world::World;

#[derive(Debug, Clone)]
pub enum StrayEpoch {
    Unknown,
    Other,
    Own,
}

#[derive(Debug, Clone)]
pub enum Op {
    /// An event is published; `lost` on its way to the stream.
    Publish {
        lost: bool,
    },
    /// The oldest request is carried out by the server; its answer is on the way.
    Execute,
    /// The oldest message or answer on the wire arrives; an answer may be overtaken by the message behind it.
    Arrive {
        overtaken: bool,
    },
    /// A new socket, with what an earlier one had seen, a little more, or nothing.
    Join {
        resume: Option<u8>,
        ahead: bool,
    },
    /// A socket leaves.
    Leave(u8),
    /// The comparison is due.
    Check,
    /// The server restarts empty: a new epoch.
    Restart,
    /// The server loses its newest events without a trace in its epoch.
    Rewind(u8),
    /// The log expires.
    Expire,
    /// Something is published to a server that the tenant has left, in this epoch.
    Stray(StrayEpoch),
    /// An answer comes that is not awaited: of an earlier stream, or the same one again.
    Unasked(u8),
    /// The connection breaks, or is back.
    Lost,
    Returned,
    /// The oldest query for a snapshot ends, without these parts.
    Load {
        missing: Parts,
    },
    /// The wait is over after which members get what they lack of a snapshot.
    Complete,
    /// A second is over since the newest one was asked for, or since an earlier one was.
    Stale {
        newest: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::bool::weighted(0.2).prop_map(|lost| Op::Publish { lost }),
        8 => Just(Op::Execute),
        10 => prop::bool::weighted(0.3).prop_map(|overtaken| Op::Arrive { overtaken }),
        4 => (prop::option::of(any::<u8>()), prop::bool::weighted(0.2)).prop_map(|(resume, ahead)| Op::Join { resume, ahead }),
        2 => any::<u8>().prop_map(Op::Leave),
        2 => Just(Op::Check),
        1 => Just(Op::Restart),
        1 => (1..4u8).prop_map(Op::Rewind),
        1 => Just(Op::Expire),
        1 => prop_oneof![Just(StrayEpoch::Unknown), Just(StrayEpoch::Other), Just(StrayEpoch::Own)].prop_map(Op::Stray),
        1 => any::<u8>().prop_map(Op::Unasked),
        1 => Just(Op::Lost),
        2 => Just(Op::Returned),
        6 => (prop::bool::weighted(0.3), prop::bool::weighted(0.3))
            .prop_map(|(metrics, payments)| Op::Load { missing: Parts { metrics, payments } }),
        2 => Just(Op::Complete),
        2 => any::<bool>().prop_map(|newest| Op::Stale { newest }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(1000), ..ProptestConfig::default() })]

    #[test]
    fn every_member_sees_a_chain_or_is_told(snapshots: bool, ops in vec(op(), 1..160)) {
        let mut world = World::new(if snapshots { Start::Snapshot } else { Start::Position });
        for op in ops {
            world.run(op);
        }
        world.settle();
    }
}
