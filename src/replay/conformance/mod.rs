//! The suite that a [`ReplayStore`] must pass.
//!
//! [`check`] is for every store, [`check_reopen`] for those that outlive the process, [`check_nodes`] for those that several
//! nodes share. All talk to the store as a hub
//! does, in one task and then in many at once, and stop at the first [`Violation`], which names the [`Rule`].
//!
//! ```
//! use tidings::replay::{Ring, conformance};
//!
//! # fn main() -> Result<(), conformance::Violation> {
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! conformance::check(async |keep: conformance::Keep| match keep.events_per_topic {
//!     Some(events) => Ring::new().events_per_topic(events),
//!     None => Ring::new(),
//! })
//! .await
//! # })
//! # }
//! ```
//!
//! Run it on both kinds of tokio runtime, with the timer enabled: on one thread the interleavings are always the same,
//! on several they are real. A call that takes longer than ten seconds is a violation too, unless it blocks the thread.
//! Stores that share a server's database need a fresh place in it at each call of the function that makes them.
//!
//! What the suite cannot see: whether [`AppendError`](super::AppendError) tells the two kinds apart rightly, whether a
//! log that was rewound begins a new run, what a power cut leaves, and whether what goes by its age spares the newest of
//! each key.

mod append;
mod book;
mod follow;
mod judge;
mod nodes;
mod race;
mod read;
mod record;
mod removal;
mod reopen;
mod repeat;
mod replace;
mod rule;
mod trial;

pub use self::rule::{Rule, Violation};
use self::{rule::Verdict, trial::Trial};
use super::ReplayStore;

/// How much the suite wants a store to keep.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Keep {
    /// The most events of a topic, of whatever kind; what is older is to be removed by the time that an append returns. `None` is for
    /// everything: whatever other bounds the store has, a few hundred events of a few hundred kilobytes must be in them.
    /// With `Some(0)` nothing is kept but that topics are finished; a store that cannot do that may keep one event.
    pub events_per_topic: Option<usize>,
}

impl Keep {
    const ALL: Self = Self { events_per_topic: None };

    const fn some(events: usize) -> Self {
        Self { events_per_topic: Some(events) }
    }
}

/// Checks a store by all rules but those for a log that is opened again.
///
/// `new_store` makes a new, empty log each time.
///
/// # Errors
///
/// The first violation.
///
/// # Panics
///
/// When the store panics, or outside a tokio runtime that has its timer enabled.
pub async fn check<S, F>(new_store: F) -> Result<(), Violation>
where
    S: ReplayStore,
    F: AsyncFn(Keep) -> S,
{
    macro_rules! scenes {
        ($($what:literal: $check:path, $keep:expr;)*) => {
            $(
                let verdict = match Trial::new(&new_store, $keep).await {
                    Ok(log) => $check(log).await,
                    Err(violation) => Err(violation),
                };
                verdict.map_err(|violation| violation.when($what))?;
            )*
        };
    }
    append::new_logs(&new_store).await.map_err(|violation| violation.when("a new log"))?;
    scenes! {
        "positions": append::positions, Keep::ALL;
        "where a read begins": read::ranges, Keep::ALL;
        "where a page ends": read::limits, Keep::ALL;
        "cursors of other logs": read::foreign, Keep::ALL;
        "reads that are dropped": read::dropped, Keep::ALL;
        "the newest of a key": replace::newest, Keep::ALL;
        "records": record::round_trip, Keep::ALL;
        "refusals": append::refusals, Keep::ALL;
        "finished topics": append::finish, Keep::ALL;
        "keys that look alike": replace::alike_keys, Keep::ALL;
        "keys of finished topics": replace::finished, Keep::ALL;
        "`try_append`": append::try_append, Keep::ALL;
        "forgotten topics": removal::forgetting, Keep::ALL;
        "topics that look alike": record::alike_topics, Keep::ALL;
        "idempotency keys": repeat::known, Keep::ALL;
        "idempotency keys of what was refused": repeat::refused, Keep::ALL;
        "keys of forgotten topics": replace::forgetting, Keep::ALL;
        "eviction": removal::eviction, Keep::some(4);
        "eviction of all but one": removal::eviction, Keep::some(1);
        "eviction of everything": removal::finished_and_evicted, Keep::some(0);
        "keys and eviction": replace::eviction, Keep::some(4);
        "keys and eviction of all but one": replace::eviction, Keep::some(1);
        "idempotency keys and eviction": repeat::outlived, Keep::some(1);
        "appends at the same time": race::appending, Keep::ALL;
        "heads and appends at the same time": race::heads, Keep::ALL;
        "reads and eviction at the same time": race::evicting, Keep::some(3);
        "reads and `forget` at the same time": race::forgetting, Keep::ALL;
        "appends and `forget` at the same time": race::forgetting_what_is_appended, Keep::ALL;
        "ends at the same time": race::finishing, Keep::ALL;
        "one idempotency key from several tasks": repeat::at_once, Keep::ALL;
        "reads while a key is replaced": race::replacing, Keep::ALL;
        "one key from several tasks": race::replacing_from_several_tasks, Keep::ALL;
    }
    Ok(())
}

/// Checks a store that outlives the process by the rules for a log that is opened again.
///
/// `open` opens the same log each time; at the first call it is new. The store that came before is dropped by then. To
/// check what the end of a process leaves, let `open` copy what a running store has on disk, and open the copy. Each opening
/// is to begin a run: of a log that nodes share, let `open` do first what begins one, such as to restart the server.
///
/// # Errors
///
/// The first violation.
///
/// # Panics
///
/// As [`check`].
pub async fn check_reopen<S, F>(open: F) -> Result<(), Violation>
where
    S: ReplayStore,
    F: AsyncFn(Keep) -> S,
{
    let verdict: Verdict = reopen::reopen(&open).await;
    verdict.map_err(|violation| violation.when("a log that is opened again"))
}

/// Checks a store that several nodes share by the rules for that.
///
/// `new_nodes` opens two nodes of a new, empty log each time. [`check`] is for each node of it as well.
///
/// # Errors
///
/// The first violation.
///
/// # Panics
///
/// As [`check`].
pub async fn check_nodes<S, F>(new_nodes: F) -> Result<(), Violation>
where
    S: ReplayStore,
    F: AsyncFn(Keep) -> [S; 2],
{
    nodes::view(&new_nodes).await.map_err(|violation| violation.when("two nodes of one log"))?;
    nodes::order(&new_nodes).await.map_err(|violation| violation.when("feeds while two nodes append"))?;
    nodes::forgetting(&new_nodes).await.map_err(|violation| violation.when("feeds and a forgotten topic"))?;
    nodes::notices(&new_nodes).await.map_err(|violation| violation.when("notices"))
}
