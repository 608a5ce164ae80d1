//! The joined sockets of one room, and the fan-out: what this project exists for.
//!
//! One event is one frame for each dialect, made once, and the same bytes are written to every socket of the dialect. The walk goes over
//! a plain vector of writers: no hashing, no lock, no reference count, no look at the socket, no task woken for one that keeps up.

mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::socket::dialect::{Dialect, Frames};
use crate::socket::link::{Link, Overflow};
use crate::socket::snapshot::Parts;
use writer::RawWriter;

/// A socket in a room.
pub struct Member {
    /// While the member sits in an audience, only the audience writes to it.
    pub link: Arc<Link>,
    /// The token's `sub`, by which it can be disconnected.
    pub subject: Option<Arc<str>>,
    /// When the token was issued: [`crate::tokens::Claims::issued_at`].
    pub issued_at: u64,
    /// The parts of its snapshot that could not be had when its join was answered.
    pub lacks: Parts,
}

/// The sockets that are sent everything: a list for each dialect.
#[derive(Default)]
pub struct Audience {
    lists: [List; Dialect::ALL.len()],
}

/// The sockets of one dialect.
#[derive(Default)]
struct List {
    members: Vec<Member>,
    /// Of the members, in the same order.
    writers: Vec<RawWriter>,
}

impl Audience {
    pub fn len(&self) -> usize {
        self.lists.iter().map(|list| list.members.len()).sum()
    }

    /// Seats a member, which is sent everything from now on.
    pub fn seat(&mut self, member: Member) {
        let List { members, writers } = &mut self.lists[member.link.dialect as usize];
        member.link.seat.store(members.len(), Ordering::Relaxed);
        writers.push(RawWriter::of(&member.link));
        members.push(member);
    }

    /// Takes a member out, if it is here.
    pub fn remove(&mut self, link: &Link) -> Option<Member> {
        let list = &mut self.lists[link.dialect as usize];
        list.seat_of(link).map(|seat| list.vacate(seat))
    }

    /// The socket's member, if it sits here.
    pub fn member(&mut self, link: &Link) -> Option<&mut Member> {
        let list = &mut self.lists[link.dialect as usize];
        list.seat_of(link).map(|seat| &mut list.members[seat])
    }

    /// Whether the socket sits here.
    pub fn contains(&self, link: &Link) -> bool {
        self.lists[link.dialect as usize].seat_of(link).is_some()
    }

    /// Writes to one member; `None` when it isn't here.
    pub fn tell(&mut self, link: &Link, frames: &Bytes) -> Option<Result<(), Overflow>> {
        let list = &mut self.lists[link.dialect as usize];
        list.seat_of(link).map(|seat| list.writers[seat].write(link, frames, 1))
    }

    /// Writes to every member; returns those that fell too far behind: they are out.
    pub fn send(&mut self, frames: &mut Frames<'_>, events: usize) -> Vec<Member> {
        self.send_where(frames, events, |_, _| true)
    }

    /// Writes to every member that keeps up: for what is worth nothing late.
    pub fn send_to_prompt(&mut self, frames: &mut Frames<'_>) -> Vec<Member> {
        self.send_where(frames, 1, |writer, member| !writer.congested(&member.link))
    }

    /// Every member was answered without these parts of its snapshot.
    pub fn all_lack(&mut self, parts: Parts) {
        self.lists.iter_mut().flat_map(|list| &mut list.members).for_each(|member| member.lacks = parts);
    }

    /// The parts that at least one member lacks.
    pub fn lacking(&self) -> Parts {
        self.members().fold(Parts::NONE, |parts, member| parts.or(member.lacks))
    }

    /// Writes a snapshot without the `missing` parts to the members for which it has a part that they lack; returns those that fell too
    /// far behind: they are out.
    pub fn complete(&mut self, frames: &mut Frames<'_>, missing: Parts) -> Vec<Member> {
        self.send_where(frames, 1, |_, member| {
            let still = member.lacks.and(missing);
            std::mem::replace(&mut member.lacks, still) != still
        })
    }

    /// Takes out every member that fits the description.
    pub fn extract(&mut self, fits: impl Fn(&Member) -> bool) -> Vec<Member> {
        let mut extracted = Vec::new();
        for list in &mut self.lists {
            let seats: Vec<_> = (0..list.members.len()).rev().filter(|seat| fits(&list.members[*seat])).collect();
            extracted.extend(seats.into_iter().map(|seat| list.vacate(seat)));
        }
        extracted
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.lists.iter().flat_map(|list| &list.members)
    }

    fn send_where(
        &mut self,
        frames: &mut Frames<'_>,
        events: usize,
        mut wants: impl FnMut(&mut RawWriter, &mut Member) -> bool,
    ) -> Vec<Member> {
        let mut out = Vec::new();
        for (dialect, list) in Dialect::ALL.into_iter().zip(&mut self.lists) {
            if list.members.is_empty() {
                continue;
            }
            let (frames, mut slow) = (frames.in_dialect(dialect), Vec::new());
            for (seat, (writer, member)) in list.writers.iter_mut().zip(&mut list.members).enumerate() {
                if wants(writer, member) && writer.write(&member.link, frames, events).is_err() {
                    slow.push(seat);
                }
            }
            // From the last, so that the seats before it keep their numbers.
            out.extend(slow.into_iter().rev().map(|seat| list.vacate(seat)));
        }
        out
    }
}

impl List {
    fn seat_of(&self, link: &Link) -> Option<usize> {
        let seat = link.seat.load(Ordering::Relaxed);
        self.members.get(seat).is_some_and(|member| member.link.id == link.id).then_some(seat)
    }

    fn vacate(&mut self, seat: usize) -> Member {
        self.writers.swap_remove(seat);
        let member = self.members.swap_remove(seat);
        if let Some(moved) = self.members.get(seat) {
            moved.link.seat.store(seat, Ordering::Relaxed);
        }
        member
    }
}

#[cfg(test)]
mod tests;
