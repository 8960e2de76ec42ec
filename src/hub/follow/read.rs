//! What a follower reads from the store, and what it takes from a page.

use super::{Follower, Heading, Held, Phase, Reading};
use crate::{
    hub::{
        Store,
        error::SubscriptionError,
        gap::{Gap, GapReason, Resume},
        window::{Age, Standing},
    },
    replay::{Cursor, Page, Read, ReadError, ReadFrom},
};
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

/// Pages in a row that may lead nowhere before the store is taken for broken.
const MOST_STUCK: u32 = 16;

impl Follower {
    /// Reads from the store for as long as that is what is to be done.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscriptionError>> {
        ready!(self.poll_exists(cx))?;
        loop {
            match &mut self.phase {
                Phase::Window | Phase::Snapshot(_) | Phase::Ended(_) => return Poll::Ready(Ok(())),
                Phase::Off(from) => {
                    let from = **from;
                    let (max_events, max_bytes) = self.shared.settings.page;
                    let mut read = Read { max_events, max_bytes, ..Read::new(&self.member.topics, from) };
                    let age = self.shared.window.age();
                    match &self.shared.store {
                        Store::Ring(ring) => {
                            // Asked only of the hub's own ring: any other store is to see what it gives.
                            read.joined = self.joined;
                            let mut page = ring.read_now(&read);
                            if !page.stretches.is_empty()
                                && self.shared.window.has_between(&self.attached, page.through)
                            {
                                read.joined = false;
                                page = ring.read_now(&read);
                            }
                            self.take(from, age, page);
                        }
                        Store::Other(store) => {
                            let read = self.shared.in_time(Arc::clone(store).read(read));
                            self.phase = Phase::Reading(Box::new(Reading { from, age, read }));
                        }
                    }
                }
                Phase::Reading(reading) => {
                    let page = ready!(reading.read.as_mut().poll(cx));
                    let Reading { from, age, .. } = **reading;
                    self.phase = Phase::Ended(None);
                    let page = page?;
                    match &self.shared.store {
                        Store::Other(store)
                            if page.through.run() != age.run && self.shared.window.age().run == age.run =>
                        {
                            let head = self.shared.in_time(Arc::clone(store).head());
                            self.phase = Phase::Heading(Box::new(Heading { from, age, page, head }));
                        }
                        _ => self.take_checked(from, age, page)?,
                    }
                }
                Phase::Heading(heading) => {
                    let head = ready!(heading.head.as_mut().poll(cx));
                    let Phase::Heading(heading) = std::mem::replace(&mut self.phase, Phase::Ended(None)) else {
                        return Poll::Ready(Ok(()));
                    };
                    let Heading { from, age, page, .. } = *heading;
                    let age = self.shared.window.reset_if(age, head?);
                    self.take_checked(from, age, page)?;
                }
            }
        }
    }

    /// A page that goes nowhere, again and again, would be an endless loop.
    fn take_checked(&mut self, from: ReadFrom, age: Age, page: Page) -> Result<(), ReadError> {
        if let ReadFrom::After(cursor) = from {
            let through = page.through;
            let backward = through.run() == cursor.run() && through.position() < cursor.position();
            let off = || self.shared.window.settle(&self.attached, &mut through.clone()) == Standing::Off;
            let nowhere = through == cursor && (page.foreign || off());
            // Once or twice is a burst that passed while the page was on its way.
            self.stuck = if nowhere { self.stuck + 1 } else { 0 };
            if !page.foreign && backward || self.stuck > MOST_STUCK {
                return Err(ReadError::new("the store's page ends before the window begins"));
            }
        }
        self.take(from, age, page);
        Ok(())
    }

    fn take(&mut self, from: ReadFrom, age: Age, page: Page) {
        if page.through.run() != self.cursor.run() {
            self.told = 0;
            self.restart_meter();
        }
        // Ids never run ahead of what was handed over, so not past the first entry that is held.
        let begin = page.begin();
        match from {
            ReadFrom::After(cursor) if page.foreign => {
                let gap = Gap { reason: GapReason::Foreign, after: Some(cursor), through: page.through };
                self.set_gap(gap, page.through);
                if self.opened {
                    // The log was replaced under a live subscription: what is held may be what it has seen.
                    self.follow_from(page.through);
                } else {
                    self.begin(page.through);
                }
                return;
            }
            ReadFrom::After(cursor) if page.floor > cursor.position().max(self.told) => {
                self.told = page.floor;
                let through = page.through.run().at(page.floor);
                // A gap that is still to be reported grows.
                let earlier = self.known_gap();
                let gap = earlier.unwrap_or(Gap { reason: GapReason::Evicted, after: Some(cursor), through });
                self.set_gap(Gap { through, ..gap }, begin);
            }
            ReadFrom::After(_) => {}
            ReadFrom::Earliest | ReadFrom::Last(_) => match &mut self.gap {
                Some(gap) => gap.1 = begin,
                None => self.cursor = begin,
            },
        }
        self.shared.window.learn(&self.attached, &self.member.topics, &page, age);
        let late = !self.opened && !self.has_id() && matches!(from, ReadFrom::After(_));
        self.opened = true;
        let empty = page.entries.is_empty() && page.stretches.is_empty();
        if late && empty && page.finished.len() == self.member.topics.len() {
            // As in `follow_from`, now that the store has told.
            self.phase = Phase::Off(Box::new(ReadFrom::Earliest));
            return;
        }
        self.phase = Phase::Window;
        let Page { mut entries, mut through, stretches, .. } = page;
        if let (Some(pace), false) = (&mut self.pace, entries.is_empty()) {
            match pace.round(self.cursor).filter(|_| self.gap.is_none()) {
                // What came after the round began is for the next.
                Some(end) if end < through.position() => {
                    entries.truncate(entries.partition_point(|entry| entry.position() <= end));
                    through = through.run().at(end);
                }
                Some(_) => {}
                // The round goes on with what there is behind the page: what was missed is not to wait.
                None => pace.found(self.shared.window.head()),
            }
        }
        let at = self.cursor.position();
        self.shared.window.put_between(&mut self.attached, at, through, &mut entries);
        self.pending = entries.into();
        self.held = Some(Box::new(Held { stretches, through }));
    }

    pub(super) fn set_gap(&mut self, gap: Gap, resumes_after: Cursor) {
        if !self.opened && self.outcome == Resume::Resumed {
            self.outcome = Resume::Gap(gap.reason);
        }
        self.gap = Some(Box::new((gap, resumes_after)));
    }
}
