//! The log: what was published, in order, for as long as it is kept.
//!
//! A [`ReplayStore`] keeps [`Record`]s and gives each a [`Cursor`], which is the id that clients see. [`Ring`] keeps
//! them in memory and is what a hub uses unless it is given another store: `Durable` (feature `durable`) keeps them on disk,
//! and `RedisStore` (feature `redis`) where several nodes share them. Another store is another log: to move from one to the
//! other is a gap for every client.
//!
//! The page `writing_a_store` is about one of your own, and the suite `conformance` (feature `conformance`) says whether it
//! keeps the contract.

pub(crate) mod codec;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;
mod cursor;
#[cfg(feature = "durable")]
mod durable;
mod error;
mod feed;
mod page;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod repeats;
mod ring;
mod shelf;
mod store;

#[cfg(doc)]
#[doc = include_str!("writing_a_store.md")]
pub mod writing_a_store {}

#[cfg(feature = "durable")]
#[cfg_attr(docsrs, doc(cfg(feature = "durable")))]
pub use self::durable::{Durable, DurableBuilder, DurableCheck, DurableError};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::{RedisStore, RedisStoreBuilder};
pub use self::{
    cursor::{Cursor, ParseCursorError, Run},
    error::{AppendError, ReadError, Refused},
    feed::{Feed, FeedItem, Notice},
    page::{Page, Read, ReadFrom},
    record::{BodyError, Entry, Kind, Record},
    ring::Ring,
    store::ReplayStore,
};
pub(crate) use self::{
    record::Draft,
    shelf::{Limits, Room, Shelf, Stretch},
    store::{BoxFuture, ErasedStore, Outcomes},
};
