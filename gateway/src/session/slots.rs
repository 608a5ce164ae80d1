//! Slots: how many sockets this instance holds, and of which users.
//!
//! Unverified sockets are counted apart: they never take a slot of a verified one. When they are too many, the one that has waited longest
//! is closed. Each user holds a few verified sockets at most.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::metrics::Metrics;
use crate::socket::close::{CloseReason, FullReason};
use crate::socket::link::Link;
use crate::tokens::Claims;

/// The slots of an instance.
#[derive(Clone)]
pub struct Slots(Arc<Pools>);

struct Pools {
    max: usize,
    max_per_user: u32,
    verified: AtomicUsize,
    strangers: Mutex<Strangers>,
    users: Mutex<HashMap<UserKey, u32>>,
    hasher: RandomState,
    metrics: Metrics,
}

/// The unverified sockets.
#[derive(Default)]
struct Strangers {
    taken: usize,
    next: u64,
    /// Those that can be closed to make room, the oldest first.
    links: BTreeMap<u64, Weak<Link>>,
}

/// Stands for a user: the token's `sub`, or the token itself where it has none. Hashed with a key of this process: a whole name would take
/// more memory with each socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserKey(u64);

/// A socket's place; given back when it is dropped, wherever that happens.
pub struct Slot {
    slots: Slots,
    holder: Holder,
}

#[derive(Clone, Copy)]
enum Holder {
    Stranger(u64),
    User(UserKey),
}

impl Slots {
    /// `max` for verified sockets, `max_per_user` of them for each user, and `max` more for unverified ones.
    pub fn new(max: usize, max_per_user: u32, metrics: Metrics) -> Self {
        Self(Arc::new(Pools {
            max,
            max_per_user,
            verified: AtomicUsize::new(0),
            strangers: Mutex::default(),
            users: Mutex::default(),
            hasher: RandomState::new(),
            metrics,
        }))
    }

    /// Whether a verified socket would be refused.
    pub fn full(&self) -> bool {
        self.0.verified.load(Ordering::Relaxed) >= self.0.max
    }

    /// Whose sockets count together with those of this token.
    pub fn user(&self, claims: &Claims, token: &str) -> UserKey {
        UserKey(match &claims.subject {
            Some(subject) => self.0.hasher.hash_one((0_u8, &**subject)),
            None => self.0.hasher.hash_one((1_u8, token)),
        })
    }

    /// A slot for a verified socket.
    ///
    /// # Errors
    /// Which limit is reached.
    pub fn take(&self, user: UserKey) -> Result<Slot, FullReason> {
        let pools = &*self.0;
        pools.take_user(user)?;
        let take = |count| (count < pools.max).then_some(count + 1);
        if pools.verified.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            pools.release_user(user);
            return Err(FullReason::Gateway);
        }
        pools.metrics.connections(1);
        Ok(Slot { slots: self.clone(), holder: Holder::User(user) })
    }

    /// A slot for an unverified socket. `None` while all verified slots are taken: the socket could never join. When all unverified slots
    /// are taken, the oldest such socket is closed.
    pub fn take_unverified(&self) -> Option<Slot> {
        if self.full() {
            return None;
        }
        let mut strangers = self.0.strangers();
        if strangers.taken >= self.0.max {
            let oldest = std::iter::from_fn(|| strangers.links.pop_first()).find_map(|(_, link)| link.upgrade());
            oldest?.close_with(CloseReason::Full(FullReason::Gateway));
        }
        strangers.taken += 1;
        strangers.next += 1;
        self.0.metrics.unauthenticated(1);
        Some(Slot { slots: self.clone(), holder: Holder::Stranger(strangers.next) })
    }
}

impl Pools {
    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> MutexGuard<'_, HashMap<UserKey, u32>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_user(&self, user: UserKey) -> Result<(), FullReason> {
        let mut users = self.users();
        let count = users.entry(user).or_default();
        if *count >= self.max_per_user {
            return Err(FullReason::User);
        }
        *count += 1;
        Ok(())
    }

    fn release_user(&self, user: UserKey) {
        let mut users = self.users();
        if let Some(count) = users.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                users.remove(&user);
            }
        }
    }
}

impl Slot {
    /// The socket is open: while it is unverified, it can be closed to make room.
    pub fn attach(&self, link: &Arc<Link>) {
        if let Holder::Stranger(number) = self.holder {
            self.slots.0.strangers().links.insert(number, Arc::downgrade(link));
        }
    }

    /// Turns this into the slot of a socket whose token was verified for this user.
    ///
    /// # Errors
    /// Which limit is reached; the slot stays as it is.
    pub fn verify(&mut self, user: UserKey) -> Result<(), FullReason> {
        match &mut self.holder {
            Holder::User(holder) if *holder == user => {}
            Holder::User(holder) => {
                self.slots.0.take_user(user)?;
                self.slots.0.release_user(std::mem::replace(holder, user));
            }
            // The old slot is given back as it is dropped.
            Holder::Stranger(_) => *self = self.slots.take(user)?,
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let pools = &*self.slots.0;
        match self.holder {
            Holder::Stranger(number) => {
                let mut strangers = pools.strangers();
                strangers.taken -= 1;
                strangers.links.remove(&number);
                pools.metrics.unauthenticated(-1);
            }
            Holder::User(user) => {
                pools.verified.fetch_sub(1, Ordering::Relaxed);
                pools.release_user(user);
                pools.metrics.connections(-1);
            }
        }
    }
}
