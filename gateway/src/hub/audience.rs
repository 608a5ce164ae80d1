//! The joined sockets of one room, and the fan-out: what this project exists for.
//!
//! One event is one frame, made once, and the same bytes are written to every socket. The walk goes over a plain vector:
//! no hashing, no lock, no reference counted, no task woken for a socket that keeps up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::socket::link::Link;

/// A socket in a room.
pub struct Member {
    /// Its exit; while the member sits here, nobody else writes to it.
    pub link: Arc<Link>,
    /// The token's `sub`, by which it can be disconnected.
    pub subject: Option<Arc<str>>,
    /// The token's `iat`, in seconds of Unix time.
    pub issued_at: Option<u64>,
    /// When it joined, in milliseconds of Unix time.
    pub joined_at: u64,
}

/// The sockets that are sent everything.
#[derive(Default)]
pub struct Audience {
    members: Vec<Member>,
}

impl Audience {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Seats a member, which hears everything from now on.
    pub fn seat(&mut self, member: Member) {
        member.link.seat.store(self.members.len(), Ordering::Relaxed);
        self.members.push(member);
    }

    /// Takes a member out, if it is here.
    pub fn remove(&mut self, link: &Link) -> Option<Member> {
        let seat = link.seat.load(Ordering::Relaxed);
        let here = self.members.get(seat).is_some_and(|member| member.link.id == link.id);
        here.then(|| self.vacate(seat))
    }

    /// Whether the socket sits here.
    pub fn contains(&self, link: &Link) -> bool {
        let seat = link.seat.load(Ordering::Relaxed);
        self.members.get(seat).is_some_and(|member| member.link.id == link.id)
    }

    /// Writes the same frames to everyone; returns those that fell too far behind, who are out.
    pub fn send(&mut self, frames: &Bytes, events: usize) -> Vec<Member> {
        let mut slow = Vec::new();
        for (seat, member) in self.members.iter().enumerate() {
            if member.link.write(frames, events).is_err() {
                slow.push(seat);
            }
        }
        // From the last, so that the seats before it keep their numbers.
        slow.into_iter().rev().map(|seat| self.vacate(seat)).collect()
    }

    /// Writes to everyone who keeps up: for what is worth nothing late.
    pub fn send_to_prompt(&mut self, frames: &Bytes) -> Vec<Member> {
        let mut slow = Vec::new();
        for (seat, member) in self.members.iter().enumerate() {
            if !member.link.congested() && member.link.write(frames, 1).is_err() {
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
        let member = self.members.swap_remove(seat);
        if let Some(moved) = self.members.get(seat) {
            moved.link.seat.store(seat, Ordering::Relaxed);
        }
        member
    }
}

#[cfg(test)]
#[path = "audience_tests.rs"]
mod tests;
