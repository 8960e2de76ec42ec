//! [`Lanes`]: numbers by which the log knows a batch again, so that one whose answer was lost can be sent again.
//!
//! Invariant: a number is given to one batch, and a lane to one batch at a time; so the log need remember only the last one of
//! each lane.

use crate::sync::Mutex;

#[derive(Debug)]
pub(super) struct Lanes {
    /// Drawn for each opened store.
    pub(super) node: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The next number of each lane.
    numbers: Vec<u64>,
    free: Vec<u32>,
    /// What was given up and may still be on its way.
    fences: Vec<Ticket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) lane: u32,
    pub(super) number: u64,
}

/// A ticket whose lane is free again when it is dropped.
pub(super) struct Held<'a> {
    lanes: &'a Lanes,
    pub(super) ticket: Ticket,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { node: crate::replay::Run::new_log().epoch, state: Mutex::new(State::default()) }
    }

    pub(super) fn take(&self) -> Held<'_> {
        let mut state = self.state.lock();
        let lane = state.free.pop().unwrap_or_else(|| {
            state.numbers.push(0);
            u32::try_from(state.numbers.len() - 1).unwrap_or(u32::MAX)
        });
        let number = &mut state.numbers[lane as usize];
        *number += 1;
        Held { lanes: self, ticket: Ticket { lane, number: *number } }
    }

    pub(super) fn give_up(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        // One that stops a batch stops those before it.
        state.fences.retain(|other| other.lane != ticket.lane);
        state.fences.push(ticket);
    }

    pub(super) fn fences(&self) -> Vec<Ticket> {
        self.state.lock().fences.clone()
    }

    pub(super) fn fenced(&self, ticket: Ticket) {
        self.state.lock().fences.retain(|other| *other != ticket);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lanes.state.lock().free.push(self.ticket.lane);
    }
}
