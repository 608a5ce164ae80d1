//! What each server is asked next, and what becomes of its answers.

use publisher::TenantId;
use tracing::warn;

use super::refusals::Elsewhere;
use super::state::Subscriber;
use crate::engine::redis::commands::Kicks;
use crate::engine::redis::sync_round::{KicksRead, Question, Scope, SyncError, SyncRound, Synced};
use crate::engine::{Reading, Rooms, Signal};

/// Questions of one round: so that the next subscription doesn't wait for all of them.
const MAX_QUESTIONS: usize = 512;
impl<R: Rooms> Subscriber<R> {
    pub(super) fn begin_rounds(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].is_ready()
                && let Some(round) = self.next_round(index)
            {
                self.nodes[index].begin(round);
            }
        }
    }

    /// What a server is to be asked now, if anything.
    fn next_round(&mut self, index: usize) -> Option<SyncRound> {
        let has_kicks = match self.nodes[index].is_left() {
            true => !self.reach.is_sharded(),
            false => self.reach.has_kicks(&self.layout, &self.nodes[index].server),
        };
        let is_due = self.nodes[index].is_due(has_kicks);
        let scope = self.nodes[index].take_scope();
        let node = &self.nodes[index];
        let is_missing = |tenant: &&TenantId| !node.held.contains(*tenant) && self.is_for(index, tenant);
        let is_missing = |tenant: &&TenantId| is_missing(tenant) && !self.refusals.is_paused(tenant);
        let subscribe: Vec<_> = self.wanted.keys().filter(is_missing).cloned().collect();
        let is_over = |tenant: &&TenantId| !self.wanted.contains_key(*tenant) || !self.is_for(index, tenant);
        let unsubscribe: Vec<_> = node.held.iter().filter(is_over).cloned().collect();
        let questions = match has_kicks || self.kicks_by.is_none() {
            true => self.take_questions(index),
            false => Vec::new(),
        };

        let node = &mut self.nodes[index];
        // What is left over comes with the next round; what is refused, when a tick finds that its pause is over.
        node.changed = questions.len() == MAX_QUESTIONS;
        if !is_due && subscribe.is_empty() && unsubscribe.is_empty() && questions.is_empty() {
            return None;
        }
        let kicks = if has_kicks { node.kicks.to_read() } else { KicksRead::Nothing };
        let (standing, own) = (node.standing(), node.own_channels());
        Some(SyncRound { scope, standing, own, subscribe, unsubscribe, questions, kicks })
    }

    /// The questions for a server: those of rooms that open first.
    fn take_questions(&mut self, index: usize) -> Vec<Question> {
        let is_open = |tenant: &TenantId| !self.refusals.is_paused(tenant) && self.node_of(tenant) == Some(index);
        let opening = self.wanted.iter().filter(|(tenant, ticket)| ticket.is_some() && is_open(tenant));
        let opening = opening.filter_map(|(tenant, ticket)| {
            Some(Question::Room { tenant: tenant.clone(), ticket: (*ticket)?, after: None })
        });
        let mut questions: Vec<_> = opening.take(MAX_QUESTIONS).collect();
        let mut asked = std::mem::take(&mut self.questions);
        asked.retain(|question| !question.is_moot());
        let room = MAX_QUESTIONS - questions.len();
        let is_open = |tenant: &TenantId| !self.refusals.is_paused(tenant) && self.node_of(tenant) == Some(index);
        questions.extend(asked.extract_if(.., |question| is_open(question.tenant())).take(room));
        self.questions = asked;
        questions
    }

    pub(super) async fn finish(&mut self, index: usize, (round, result): (SyncRound, Result<Synced, SyncError>)) {
        let node = &mut self.nodes[index];
        node.changed = true;
        match result {
            // A connection that ended meanwhile makes void what this round proved.
            Ok(_) if node.is_overtaken() => self.put_back_all(round.questions),
            Ok(synced) if node.is_left() => self.heard_out(index, round, synced).await,
            Ok(synced) => self.answered(index, round, synced).await,
            Err(error) => {
                match (node.is_left(), self.reach.is_sharded()) {
                    (true, true) => node.dismiss(),
                    (true, false) => {}
                    (false, _) => self.servers.doubt(),
                }
                node.failed(&error);
                self.put_back_all(round.questions);
            }
        }
        self.show();
    }

    async fn answered(&mut self, index: usize, round: SyncRound, synced: Synced) {
        let node = &mut self.nodes[index];
        node.is_synced(&round, &synced);
        let mut returned = Vec::new();
        match &synced.failure {
            // A new connection's rooms are all subscribed to anew.
            None if node.is_settled().is_some_and(|it| it.told().is_some()) && round.scope == Scope::Changes => {
                returned.extend(node.held.iter().filter(|tenant| !round.subscribe.contains(tenant)).cloned());
            }
            None => {}
            Some(_) => node.is_mute(),
        }
        for tenant in round.subscribe {
            match synced.refused.get(&tenant) {
                Some(why) => self.refuses(&tenant, Elsewhere::by(why)).await,
                None => {
                    self.refusals.absolve(&tenant);
                    returned.push(tenant);
                }
            }
        }
        for tenant in returned {
            // Nothing is known of what came before. A room that only opens has asked already.
            self.rooms.handle(Signal::Returned { tenant }).await;
        }
        self.hear_kicks(index, round.kicks, synced.kicks).await;

        let mut questions = round.questions.into_iter();
        for (answer, question) in synced.readings.into_iter().zip(questions.by_ref()) {
            match answer {
                Ok(reading) => self.answer(question, reading).await,
                Err(why) => {
                    if self.nodes[index].throttle.is_due(&why) {
                        warn!(tenant = %question.tenant(), error = why, "Redis does not answer for a tenant");
                    }
                    self.refuses(question.tenant(), Elsewhere::by(&why)).await;
                    self.put_back(question);
                }
            }
        }
        self.put_back_all(questions.collect());
    }

    /// A server that was left is a master still, or was one when the round began, and is subscribed to.
    async fn heard_out(&mut self, index: usize, round: SyncRound, synced: Synced) {
        let node = &mut self.nodes[index];
        node.is_synced(&round, &synced);
        node.is_settled();
        if !self.reach.is_sharded() {
            // Nothing is known of what was published there before. A node of a Cluster takes nothing for a slot that it doesn't hold.
            self.strays.may_be_of(round.subscribe.iter().filter(|tenant| !synced.refused.contains_key(*tenant)));
        }
        // A round that began before the server was left has questions, whose answers are another server's by now.
        self.put_back_all(round.questions);
        self.hear_kicks(index, round.kicks, synced.kicks).await;
    }

    /// Hands the kicks over that were read. All of them show what the server has lost, and gets back.
    async fn hear_kicks(&mut self, index: usize, read: KicksRead, heard: Option<Result<Kicks, String>>) {
        let node = &mut self.nodes[index];
        let Kicks { now, kicks, unusable } = match heard {
            None => return,
            Some(Ok(kicks)) => kicks,
            Some(Err(error)) => {
                if node.throttle.is_due(&error) {
                    warn!(error, "Redis does not tell the kicks");
                }
                return;
            }
        };
        if unusable > 0 && node.throttle.is_due("unusable kicks") {
            warn!(unusable, "kicks that no gateway gave are ignored: they name nobody, or a time that has yet to come");
        }
        node.kicks.have_been_read(now, read);
        if read == KicksRead::Everything && !node.is_left() {
            let lost = self.rooms.kicks_beyond(&kicks, now);
            if !lost.is_empty() {
                node.restore_kicks(lost);
            }
        }
        self.rooms.handle(Signal::Kicks { kicks, now }).await;
        self.stop_waiting_for_kicks();
    }

    pub(super) fn stop_waiting_for_kicks(&mut self) {
        if self.kicks_by.take().is_some() {
            self.all_changed();
        }
    }

    /// A server won't have a tenant: asked again after a while, and elsewhere if that is where it is.
    pub(super) async fn refuses(&mut self, tenant: &TenantId, elsewhere: Elsewhere) {
        if elsewhere == Elsewhere::Yes {
            self.servers.doubt();
        }
        self.refusals.refuse(tenant, elsewhere);
        self.rooms.handle(Signal::Refused { tenant: tenant.clone() }).await;
    }

    async fn answer(&mut self, question: Question, reading: Reading) {
        let of = question.tenant().clone();
        match question {
            Question::Room { tenant, ticket, .. } => {
                if let Some(open) = self.wanted.get_mut(&tenant).filter(|open| **open == Some(ticket)) {
                    *open = None;
                }
                self.rooms.handle(Signal::Reading { tenant, ticket, reading }).await;
            }
            Question::Head { reply, .. } => {
                // The caller may have given up.
                let _ = reply.send(reading.head);
            }
        }
        self.absolve(of).await;
    }

    /// A tenant is not known to be refused any more.
    pub(super) async fn absolve(&mut self, tenant: TenantId) {
        if self.refusals.absolve(&tenant) {
            self.rooms.handle(Signal::Returned { tenant }).await;
        }
    }

    /// Keeps a question for a later round; a subscription's own is made anew from what is wanted then.
    fn put_back(&mut self, question: Question) {
        if !matches!(question, Question::Room { after: None, .. }) {
            self.questions.push(question);
        }
    }

    fn put_back_all(&mut self, questions: Vec<Question>) {
        questions.into_iter().for_each(|question| self.put_back(question));
    }
}
