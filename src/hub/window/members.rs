//! The subscriptions of a [`Window`] as others see them, and how they are told to go.

use super::{
    Attached, Window,
    state::{Sleep, State, Waiter},
};
use crate::{Topic, hub::member::Member, replay::Cursor};
use std::{sync::Arc, task::Waker};

/// Who was not told to go stays past every position.
pub(super) const STAYS: u64 = u64::MAX;

impl Window {
    /// The number of a subscription among all that ever were.
    pub(crate) fn number(&self, attached: &Attached) -> u64 {
        self.state.lock().waiters[attached.waiter].number
    }

    /// Lets others see a subscription.
    pub(crate) fn enter(&self, attached: &Attached, member: &Arc<Member>) {
        self.state.lock().waiters[attached.waiter].member = Some(Arc::clone(member));
    }

    /// Lets nobody see it any more. Says whether somebody could.
    pub(crate) fn leave(&self, attached: &Attached) -> bool {
        let member = self.state.lock().waiters[attached.waiter].member.take();
        member.is_some()
    }

    /// All that are seen.
    pub(crate) fn members(&self) -> Vec<Arc<Member>> {
        let state = self.state.lock();
        state.waiters.iter().filter_map(|(_, waiter)| waiter.member.clone()).collect()
    }

    /// Those of a topic.
    pub(crate) fn members_of(&self, topic: &Topic) -> Vec<Arc<Member>> {
        let state = self.state.lock();
        let place = state.shelf.row(topic).and_then(|row| state.places.get(row));
        let waiters = place.into_iter().flat_map(|place| &place.seats);
        waiters.filter_map(|(_, &waiter)| state.waiters[waiter].member.clone()).collect()
    }

    /// How many they are.
    pub(crate) fn count_of(&self, topic: &Topic) -> usize {
        let state = self.state.lock();
        let place = state.shelf.row(topic).and_then(|row| state.places.get(row));
        let waiters = place.into_iter().flat_map(|place| &place.seats);
        waiters.filter(|(_, waiter)| state.waiters[**waiter].member.is_some()).count()
    }

    /// Lets subscriptions look for what they were told: to go at once, or once they have what was published until now; or
    /// something else.
    pub(crate) fn tell<'a>(&self, members: impl Iterator<Item = &'a Member>, goes: Goes) {
        self.change(|state, wakers| {
            // Only who goes at once does so at position 0.
            let (head, ephemerals) = (state.head.position().max(1), state.ephemerals.count);
            for member in members {
                // The place of one that is gone may be another's.
                let waiter = state.waiters.get_mut(member.waiter).filter(|waiter| waiter.number == member.number);
                let Some(waiter) = waiter else { continue };
                let stayed = waiter.goes_at == STAYS;
                waiter.goes_at = match goes {
                    Goes::AtOnce => 0,
                    Goes::WithAll => {
                        waiter.rare.get_or_insert_default().hears = ephemerals;
                        waiter.goes_at.min(head)
                    }
                    #[cfg(feature = "client-heartbeats")]
                    Goes::Not => waiter.goes_at,
                };
                state.told += usize::from(stayed && waiter.goes_at != STAYS);
                wakers.extend(waiter.waker.take());
            }
        });
    }

    /// Keeps the waker for what the subscription may be told, while it waits for something else than the window. Not if it
    /// was told to go at once.
    pub(crate) fn doze(&self, attached: &Attached, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        let waiter = &mut state.waiters[attached.waiter];
        let dozes = waiter.goes_at > 0;
        if dozes {
            waiter.rare.get_or_insert_default();
            Self::wait(state, attached, waker, Sleep::Dozes);
        }
        dozes
    }
}

/// Whether who is told something is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goes {
    AtOnce,
    /// Once it has what was published until now.
    WithAll,
    #[cfg(feature = "client-heartbeats")]
    Not,
}

impl State {
    /// Whether one that was told to go has what it was still to have.
    pub(super) fn goes_now(&self, attached: &Attached, position: u64) -> bool {
        let waiter = &self.waiters[attached.waiter];
        let hears = waiter.rare.as_ref().map_or(0, |rare| rare.hears);
        let unheard = attached.heard < hears && self.has_unheard(attached, position);
        position >= waiter.goes_at && (waiter.goes_at == 0 || !unheard)
    }
}

impl Waiter {
    pub(super) fn new(number: u64, head: Cursor) -> Self {
        Self { waker: None, rare: None, member: None, number, goes_at: STAYS, position: head.position() }
    }
}
