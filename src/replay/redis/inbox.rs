//! [`Inbox`]: what came over the channel of the feed and was not taken yet.
//!
//! Invariant: it is bounded. What finds no room is left out, and that it was is known: it is read from the log.

use crate::sync::Mutex;
use std::collections::VecDeque;
use tokio::sync::Notify;

/// As much as a node can be behind before it had better read.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// What a message takes beside its bytes, about.
const OVERHEAD: usize = 128;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// The channel is listened to from here on.
    Up,
    /// It no longer is.
    Down,
    Message(Vec<u8>),
    /// Messages were left out here.
    Overflow,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Incoming>,
    bytes: usize,
    is_full: bool,
}

impl Inbox {
    pub(super) fn put(&self, incoming: Incoming) {
        let mut state = self.state.lock();
        if let Incoming::Message(bytes) = &incoming {
            if state.bytes + bytes.len() > MOST_BYTES && state.bytes > 0 {
                if !state.is_full {
                    state.is_full = true;
                    state.queue.push_back(Incoming::Overflow);
                }
                return;
            }
            state.bytes += bytes.len() + OVERHEAD;
        }
        state.queue.push_back(incoming);
        drop(state);
        self.news.notify_one();
    }

    /// The next one. Dropping this takes nothing out.
    pub(super) async fn next(&self) -> Incoming {
        loop {
            if let Some(incoming) = self.take() {
                return incoming;
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<Incoming> {
        let mut state = self.state.lock();
        let incoming = state.queue.pop_front()?;
        match &incoming {
            Incoming::Message(bytes) => state.bytes -= bytes.len() + OVERHEAD,
            Incoming::Overflow => state.is_full = false,
            Incoming::Up | Incoming::Down => {}
        }
        Some(incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_left_out_and_that_is_known() {
        let inbox = Inbox::default();
        let message = || Incoming::Message(vec![0; MOST_BYTES / 2]);
        inbox.put(Incoming::Up);
        for _ in 0..5 {
            inbox.put(message());
        }
        let taken: Vec<_> = std::iter::from_fn(|| inbox.take()).collect();
        assert_eq!(taken, [Incoming::Up, message(), Incoming::Overflow]);
        // From then on there is room again, and one that is larger than all of it is not left out for ever.
        inbox.put(Incoming::Message(vec![0; MOST_BYTES + 1]));
        assert!(matches!(inbox.take(), Some(Incoming::Message(_))));
        assert_eq!(inbox.state.lock().bytes, 0);
    }
}
