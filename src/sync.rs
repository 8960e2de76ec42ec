//! The lock and the counter that the crate uses, and how it wakes. With `cfg(tidings_loom)` they are loom's, so that every interleaving can
//! be tried.

pub(crate) use self::imp::{
    MutexGuard,
    atomic::{AtomicU64, Ordering},
};
#[cfg(all(test, tidings_loom))]
use loom::sync as imp;
#[cfg(not(all(test, tidings_loom)))]
use std::sync as imp;
use std::task::Waker;

/// A lock without poisoning: no code of the application runs under one, and none of ours panics there.
#[derive(Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

/// Nothing of the value: whoever formats may run code of the application.
impl<T> std::fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").finish_non_exhaustive()
    }
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> imp::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Wakes them, the rest also if one of them panics. Not under a lock: wakers are somebody else's code.
pub(crate) fn wake_all(wakers: &mut Vec<Waker>) {
    let waking = Waking(wakers);
    while let Some(waker) = waking.0.pop() {
        waker.wake();
    }
}

struct Waking<'a>(&'a mut Vec<Waker>);

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}
