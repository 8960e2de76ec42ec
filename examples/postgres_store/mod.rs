//! A log in `PostgreSQL`, shared by any number of nodes: what the crate's page on writing a store describes.

pub(crate) mod check;
mod feed;
mod page;
pub(crate) mod sql;
mod store;
mod turn;

pub(crate) use self::store::{PostgresStore, Retention};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
