//! [`Registry`]: who is let in, and who is told of it.
//!
//! It knows limits, whether the hub is being drained, and who watches a topic. Who is there is known to the window, which
//! has the place of each anyway.
//!
//! Invariants: what is counted under a limit never exceeds it, because looking and counting are one critical section; a
//! watcher sees one `Left` for every `Joined`. The window's lock is taken inside of this one, never the other way round.

use super::{
    drain::Goodbye,
    gap::Resume,
    member::{Details, LeaveReason, Member, Subscriber},
    presence::{PresenceChange, Watching},
    stats::{Left, Opened, Refusals},
    window::{Attached, Window},
};
use crate::{
    Topic,
    replay::Cursor,
    sync::{Mutex, wake_all},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    task::Waker,
};
use tokio::sync::Notify;

/// How many subscriptions one key may have at a time: one user, one address, one tenant. Each node counts its own: where
/// several share a log, and clients can come to any of them, all of them together may let in so many times as many.
///
/// Behind a proxy, the address of the connection is the proxy's: take the one that it passes on, in `x-forwarded-for` or
/// `forwarded`, if only the proxy can set that.
///
/// ```
/// use tidings::{Hub, Limit, Subscription, Topic};
///
/// fn inbox(hub: &Hub, topic: Topic, user: u64, address: std::net::IpAddr) -> Subscription {
///     hub.subscribe(topic)
///         .limit(Limit::per(format!("user {user}"), 3).newest_wins())
///         .limit(Limit::per(format!("address {address}"), 20))
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Limit {
    pub(super) key: Box<str>,
    pub(super) most: usize,
    newest_wins: bool,
}

impl Limit {
    /// At most `most` subscriptions of the same key over the whole hub; zero lets nobody in. One more is turned away, to
    /// come back later.
    pub fn per(key: impl Into<String>, most: usize) -> Self {
        Self { key: key.into().into(), most, newest_wins: false }
    }

    /// Lets one more take the place of the oldest, which ends with [`EndReason::Replaced`](crate::EndReason::Replaced).
    ///
    /// An `EventSource` that was replaced comes back and replaces in turn: with more tabs than places, all of them come and
    /// go every few seconds. So this is for pages that stop when they are told, with ends
    /// [announced](crate::HubBuilder::announce_ends):
    ///
    /// ```js
    /// events.addEventListener("tidings-end", (event) => {
    ///   if (JSON.parse(event.data).reason === "replaced") events.close();
    /// });
    /// ```
    ///
    /// One that does not read hears of it when it reads on. Until then it no longer counts under its keys, but does in
    /// [`max_subscriptions`](crate::HubBuilder::max_subscriptions): give the server a write deadline (`net`).
    pub fn newest_wins(mut self) -> Self {
        self.newest_wins = true;
        self
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Denied {
    OverLimit,
    Draining,
}

pub(crate) struct Registry {
    state: Mutex<State>,
    /// Somebody left.
    left: Notify,
}

struct State {
    /// How many there may be.
    most: usize,
    /// Those of each key that were not told to go at once, by their numbers: the oldest first.
    keys: HashMap<Box<str>, BTreeMap<u64, Arc<Member>>>,
    watching: HashMap<Topic, Vec<Weak<Watching>>>,
    draining: Option<Arc<Goodbye>>,
    counts: Counts,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) present: usize,
    pub(crate) opened: Opened,
    pub(crate) left: Left,
    pub(crate) refused: Refusals,
}

impl Registry {
    pub(crate) fn new(most: usize) -> Self {
        let (keys, watching) = (HashMap::new(), HashMap::new());
        let state = State { most, keys, watching, draining: None, counts: Counts::default() };
        Self { state: Mutex::new(state), left: Notify::new() }
    }

    /// Lets a subscription in, under limits of different keys.
    pub(crate) fn enter(
        &self,
        window: &Window,
        attached: &Attached,
        subscriber: &Subscriber,
        limits: &[Limit],
        details: Details,
        outcome: Resume,
    ) -> Result<Entered, Denied> {
        let member = &subscriber.member;
        let mut state = self.state.lock();
        if let Err(denied) = state.may_enter(limits) {
            *match denied {
                Denied::OverLimit => &mut state.counts.refused.over_limit,
                Denied::Draining => &mut state.counts.refused.draining,
            } += 1;
            return Err(denied);
        }
        let mut replaced = Vec::new();
        for limit in limits {
            while let Some(oldest) = state.in_the_way(limit) {
                // It is in nobody's way any more, under none of its keys.
                state.forget_keys(&oldest);
                replaced.push(oldest);
            }
        }
        for limit in limits {
            state.keys.entry(limit.key.clone()).or_default().insert(member.number, Arc::clone(member));
        }
        state.counts.present += 1;
        state.counts.opened.count(outcome);
        member.introduce(details);
        window.enter(attached, member);
        let told = state.tell_watching(subscriber, || PresenceChange::Joined(subscriber.clone()));
        drop(state);
        Ok(Entered { replaced, told })
    }

    /// Takes in that one has left, if it was ever there.
    pub(crate) fn leave(
        &self,
        window: &Window,
        attached: &Attached,
        subscriber: &Subscriber,
        reason: LeaveReason,
        last: Option<Cursor>,
    ) {
        let mut state = self.state.lock();
        if !window.leave(attached) {
            return;
        }
        state.counts.present -= 1;
        state.counts.left.count(reason);
        state.forget_keys(&subscriber.member);
        let left = || PresenceChange::Left { subscriber: subscriber.clone(), reason, last };
        let told = state.tell_watching(subscriber, left);
        drop(state);
        self.left.notify_waiters();
        subscriber.member.leave(reason, last);
        told.wake();
    }

    /// Those who were told to go at once are in nobody's way.
    pub(crate) fn forget<'a>(&self, members: impl IntoIterator<Item = &'a Arc<Member>>) {
        let mut state = self.state.lock();
        for member in members {
            state.forget_keys(member);
        }
    }

    /// Begins to watch a topic, with those who are there.
    pub(crate) fn watch(
        &self,
        window: &Window,
        topic: &Topic,
        begin: impl FnOnce(Vec<Arc<Member>>) -> Arc<Watching>,
    ) -> Arc<Watching> {
        let mut state = self.state.lock();
        let watching = begin(window.members_of(topic));
        let those = state.watching.entry(topic.clone()).or_default();
        those.retain(|one| one.strong_count() > 0);
        those.push(Arc::downgrade(&watching));
        watching
    }

    /// Nobody watches a topic any more, if that is so.
    pub(crate) fn unwatch(&self, topic: &Topic) {
        let mut state = self.state.lock();
        let those = state.watching.get_mut(topic);
        if those.is_some_and(|those| {
            those.retain(|one| one.strong_count() > 0);
            those.is_empty()
        }) {
            state.watching.remove(topic);
        }
    }

    /// Lets nobody in from now on.
    pub(crate) fn drain(&self, goodbye: Arc<Goodbye>) {
        self.state.lock().draining = Some(goodbye);
    }

    /// What those are told who are to go because the hub is drained.
    pub(crate) fn goodbye(&self) -> Option<Arc<Goodbye>> {
        self.state.lock().draining.clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// Waits until nobody is there.
    pub(crate) async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.counts().present == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let state = self.state.lock();
        let watching: Vec<_> = state.watching.values().flatten().filter_map(Weak::upgrade).collect();
        drop(state);
        wake_all(&mut watching.iter().filter_map(|watching| watching.end()).collect());
    }
}

impl State {
    fn may_enter(&self, limits: &[Limit]) -> Result<(), Denied> {
        if self.draining.is_some() {
            return Err(Denied::Draining);
        }
        let full = |limit: &Limit| {
            let there = self.keys.get(&limit.key).map_or(0, BTreeMap::len);
            there >= limit.most && (!limit.newest_wins || limit.most == 0)
        };
        if self.counts.present >= self.most || limits.iter().any(full) {
            return Err(Denied::OverLimit);
        }
        Ok(())
    }

    /// Who has to go so that there is room for one more of a key, if somebody has to.
    fn in_the_way(&self, limit: &Limit) -> Option<Arc<Member>> {
        let those = self.keys.get(&limit.key).filter(|those| limit.newest_wins && those.len() >= limit.most)?;
        those.first_key_value().map(|(_, oldest)| Arc::clone(oldest))
    }

    /// Whoever was told to go, or has left, is in nobody's way.
    fn forget_keys(&mut self, member: &Arc<Member>) {
        for key in member.details().into_iter().flat_map(|details| &details.keys) {
            let Some(those) = self.keys.get_mut(key) else { continue };
            those.remove(&member.number);
            if those.is_empty() {
                self.keys.remove(key);
            }
        }
    }

    fn tell_watching(&mut self, subscriber: &Subscriber, change: impl Fn() -> PresenceChange) -> Told {
        let mut told = Told::default();
        if self.watching.is_empty() {
            return told;
        }
        for topic in subscriber.topics() {
            for watching in self.watching.get(topic).into_iter().flatten().filter_map(Weak::upgrade) {
                told.wakers.extend(watching.push(change()));
                told.watching.push(watching);
            }
        }
        told
    }
}

/// What comes of letting one in; to be done outside of the lock.
pub(crate) struct Entered {
    /// Those whose place it takes.
    pub(crate) replaced: Vec<Arc<Member>>,
    pub(crate) told: Told,
}

/// Those who were told of a change, and are to look.
#[derive(Default)]
#[must_use]
pub(crate) struct Told {
    wakers: Vec<Waker>,
    /// If this is the last of one, its waker goes with it, which is somebody else's code.
    watching: Vec<Arc<Watching>>,
}

impl Told {
    pub(crate) fn wake(mut self) {
        wake_all(&mut self.wakers);
    }
}

impl Limit {
    /// Those of the same key as one, the stricter one.
    pub(super) fn merged(limits: Vec<Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::with_capacity(limits.len());
        for limit in limits {
            match merged.iter_mut().find(|other| other.key == limit.key) {
                Some(other) => {
                    other.most = other.most.min(limit.most);
                    other.newest_wins &= limit.newest_wins;
                }
                None => merged.push(limit),
            }
        }
        merged
    }
}
