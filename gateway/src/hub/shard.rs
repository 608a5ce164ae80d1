//! One shard: the task that owns some tenants' rooms. It takes inputs and due times in their order, and gives each to its room.

use std::collections::HashMap;

use futures::StreamExt;
use publisher::TenantId;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::input::{Input, Join};
use super::room::{Room, Stay};
use super::shared::{Due, Shared};
use crate::engine::{Kicked, Signal};
use crate::socket::close::CloseReason;

/// Inputs taken from the mailbox at once: events among them that are for the same room go out in one write.
const BATCH: usize = 256;

/// The task's state.
pub struct Shard {
    inbox: mpsc::Receiver<Input>,
    rooms: HashMap<TenantId, Room>,
    generation: u32,
    shared: Shared,
}

impl Shard {
    /// A shard without rooms.
    pub fn new(inbox: mpsc::Receiver<Input>, shared: Shared) -> Self {
        Self { inbox, rooms: HashMap::new(), generation: 0, shared }
    }

    /// Works until every [`super::Hub`] is gone.
    pub async fn run(mut self) {
        let mut inputs = Vec::with_capacity(BATCH);
        let mut sweep = interval(self.shared.limits.heartbeat);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = self.inbox.recv_many(&mut inputs, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for input in inputs.drain(..) {
                        self.take(input);
                    }
                    self.flush_dirty();
                }
                Some(due) = self.shared.due.next(), if !self.shared.due.is_empty() => self.take_due(due.into_inner()),
                // Every room is asked at once, so that the engine answers all of them in one sweep.
                _ = sweep.tick() => self.in_each(|room, shared| {
                    room.act(shared, |stream| stream.handle_comparison_due());
                }),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Join { tenant, join } => self.join(tenant, join),
            Input::Renewed { tenant, link, issued_at } => {
                self.within(&tenant, |room, shared| room.renew(&link, issued_at, shared));
            }
            Input::Tell { tenant, link, frames } => {
                self.within(&tenant, |room, shared| room.tell(&link, &frames, shared));
            }
            Input::Beat { tenant, link } => self.within(&tenant, |room, shared| room.beat(&link, shared)),
            Input::Leave { tenant, link, departure, done } => {
                self.within(&tenant, |room, shared| room.leave(&link, departure, shared));
                // The connection's task may have panicked by now.
                let _ = done.send(());
            }
            Input::Messages(messages) => {
                for (tenant, message) in messages {
                    self.shared.metrics.event_received(&message.event_type);
                    self.within(&tenant, |room, shared| room.act(shared, |stream| stream.handle_message(message)));
                }
            }
            Input::Signal(signal) => self.signal(signal),
            Input::Loaded { tenant, ticket, snapshot } => self.within(&tenant, |room, shared| {
                room.act(shared, |stream| stream.handle_snapshot(ticket, snapshot));
            }),
            Input::Kicked { closed } => {
                let mut counts = HashMap::<Kicked, usize>::new();
                self.in_each(|room, shared| room.close_kicked(&mut counts, shared));
                let _ = closed.send(counts);
            }
            Input::Tenants(reply) => {
                let counts = self.rooms.iter().map(|(tenant, room)| (tenant.clone(), room.members()));
                let _ = reply.send(counts.filter(|(_, members)| *members > 0).collect());
            }
        }
    }

    fn take_due(&mut self, due: Due) {
        match due {
            Due::Heartbeat(tenant) => self.within(&tenant, Room::heartbeat_due),
            Due::Linger(tenant) => self.close(&tenant),
            Due::Overdue(member) => self.shared.turns.end(member),
            Due::OverdueMoot(ticket) => self.shared.turns.end_moot(ticket),
            Due::Stale(tenant, ticket) => self.within(&tenant, |room, shared| {
                room.act(shared, |stream| stream.handle_snapshot_stale(ticket));
            }),
            Due::Incomplete(tenant) => self.within(&tenant, Room::completion_due),
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Reading { tenant, ticket, reading } => {
                self.shared.turns.end_moot(ticket);
                self.within(&tenant, |room, shared| {
                    room.answered();
                    room.act(shared, |stream| stream.handle_reading(ticket, reading));
                });
            }
            Signal::Forgotten { ticket, .. } => self.shared.turns.end_moot(ticket),
            Signal::Lost { tenant, outage } => self.within(&tenant, |room, shared| {
                // No question is answered now: the members that wait are told so.
                room.give_turns_back(shared);
                room.act(shared, |stream| stream.handle_lost(outage));
            }),
            Signal::Returned { tenant } => self.within(&tenant, |room, shared| {
                room.act(shared, |stream| stream.handle_returned());
            }),
            Signal::Refused { tenant } => self.within(&tenant, Room::refuse),
            Signal::Stray { tenant, epoch } => self.within(&tenant, |room, shared| {
                room.act(shared, |stream| stream.handle_stray(epoch.as_ref()));
            }),
            // The hub's, which asks every shard.
            Signal::Kicks { .. } => {}
        }
    }

    fn join(&mut self, tenant: TenantId, join: Join) {
        // The kick may have come while the join was on its way here.
        if self.shared.kicks.revoking(&tenant, join.subject.as_deref(), join.issued_at).is_some() {
            self.shared.metrics.join_refused("kicked");
            return join.link.close_with(CloseReason::Kicked);
        }
        if !self.rooms.contains_key(&tenant) {
            self.generation = self.generation.wrapping_add(1);
            let room = Room::open(tenant.clone(), self.generation, &mut self.shared);
            self.rooms.insert(tenant.clone(), room);
        }
        self.within(&tenant, |room, shared| room.join(join, shared));
    }

    /// Acts in a room, if it is open, and closes it when nothing keeps it open.
    fn within(&mut self, tenant: &TenantId, act: impl FnOnce(&mut Room, &mut Shared)) {
        let Some(room) = self.rooms.get_mut(tenant) else { return };
        act(room, &mut self.shared);
        if room.linger_if_empty(&mut self.shared) == Stay::Closed {
            self.close(tenant);
        }
    }

    fn in_each(&mut self, mut act: impl FnMut(&mut Room, &mut Shared)) {
        for tenant in self.rooms.keys().cloned().collect::<Vec<_>>() {
            self.within(&tenant, &mut act);
        }
    }

    fn flush_dirty(&mut self) {
        for tenant in std::mem::take(&mut self.shared.dirty) {
            self.within(&tenant, Room::flush);
        }
    }

    fn close(&mut self, tenant: &TenantId) {
        if let Some(room) = self.rooms.remove(tenant) {
            room.close(&mut self.shared);
        }
    }
}
