//! The joined sockets of one room, and the fan-out: what this project exists for.
//!
//! One event is one frame, made once, and the same bytes are written to every socket. The walk goes over a plain vector of their
//! exits: no hashing, no lock, no reference counted, no look at the socket, no task woken for one that keeps up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::socket::link::{Link, Overflow, RawWriter};
use crate::socket::snapshot::Parts;

/// A socket in a room.
pub struct Member {
    /// While the member sits in an audience, nobody else writes to it.
    pub link: Arc<Link>,
    /// The token's `sub`, by which it can be disconnected.
    pub subject: Option<Arc<str>>,
    /// When the token was issued: [`crate::tokens::Claims::issued_at`].
    pub issued_at: u64,
    /// The parts of its snapshot that could not be had when it was answered.
    pub lacks: Parts,
}

/// The sockets that are sent everything.
#[derive(Default)]
pub struct Audience {
    members: Vec<Member>,
    /// Theirs, in the same order.
    exits: Vec<RawWriter>,
}

impl Audience {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Seats a member, which hears everything from now on.
    pub fn seat(&mut self, member: Member) {
        member.link.seat.store(self.members.len(), Ordering::Relaxed);
        self.exits.push(RawWriter::of(&member.link));
        self.members.push(member);
    }

    /// Takes a member out, if it is here.
    pub fn remove(&mut self, link: &Link) -> Option<Member> {
        self.seat_of(link).map(|seat| self.vacate(seat))
    }

    /// The socket's member, if it sits here.
    pub fn member(&mut self, link: &Link) -> Option<&mut Member> {
        self.seat_of(link).map(|seat| &mut self.members[seat])
    }

    /// Whether the socket sits here.
    pub fn contains(&self, link: &Link) -> bool {
        self.seat_of(link).is_some()
    }

    fn seat_of(&self, link: &Link) -> Option<usize> {
        let seat = link.seat.load(Ordering::Relaxed);
        self.members.get(seat).is_some_and(|member| member.link.id == link.id).then_some(seat)
    }

    /// Writes to one member; `None` when it isn't here.
    pub fn tell(&mut self, link: &Link, frames: &Bytes) -> Option<Result<(), Overflow>> {
        self.seat_of(link).map(|seat| self.exits[seat].write(link, frames, 1))
    }

    /// Writes the same frames to everyone; returns those that fell too far behind, who are out.
    pub fn send(&mut self, frames: &Bytes, events: usize) -> Vec<Member> {
        let mut slow = Vec::new();
        for (seat, (exit, member)) in self.exits.iter_mut().zip(&self.members).enumerate() {
            if exit.write(&member.link, frames, events).is_err() {
                slow.push(seat);
            }
        }
        // From the last, so that the seats before it keep their numbers.
        slow.into_iter().rev().map(|seat| self.vacate(seat)).collect()
    }

    /// Writes to everyone who keeps up: for what is worth nothing late.
    pub fn send_to_prompt(&mut self, frames: &Bytes) -> Vec<Member> {
        let mut slow = Vec::new();
        for (seat, (exit, member)) in self.exits.iter_mut().zip(&self.members).enumerate() {
            if !exit.congested(&member.link) && exit.write(&member.link, frames, 1).is_err() {
                slow.push(seat);
            }
        }
        slow.into_iter().rev().map(|seat| self.vacate(seat)).collect()
    }

    /// Every member was answered without these parts of its snapshot.
    pub fn all_lack(&mut self, parts: Parts) {
        self.members.iter_mut().for_each(|member| member.lacks = parts);
    }

    /// The parts that at least one member lacks.
    pub fn lacking(&self) -> Parts {
        self.members.iter().fold(Parts::NONE, |parts, member| parts.or(member.lacks))
    }

    /// Writes a snapshot without the `missing` parts to the members for which it has a part that they lack; returns those that fell too
    /// far behind, who are out.
    pub fn complete(&mut self, frames: &Bytes, missing: Parts) -> Vec<Member> {
        let mut slow = Vec::new();
        for (seat, (exit, member)) in self.exits.iter_mut().zip(&mut self.members).enumerate() {
            let still = member.lacks.and(missing);
            if std::mem::replace(&mut member.lacks, still) != still && exit.write(&member.link, frames, 1).is_err() {
                slow.push(seat);
            }
        }
        slow.into_iter().rev().map(|seat| self.vacate(seat)).collect()
    }

    /// Takes out everyone who fits the description.
    pub fn extract(&mut self, fits: impl Fn(&Member) -> bool) -> Vec<Member> {
        let seats: Vec<_> = (0..self.members.len()).rev().filter(|seat| fits(&self.members[*seat])).collect();
        seats.into_iter().map(|seat| self.vacate(seat)).collect()
    }

    fn vacate(&mut self, seat: usize) -> Member {
        self.exits.swap_remove(seat);
        let member = self.members.swap_remove(seat);
        if let Some(moved) = self.members.get(seat) {
            moved.link.seat.store(seat, Ordering::Relaxed);
        }
        member
    }
}

#[cfg(test)]
mod tests;
