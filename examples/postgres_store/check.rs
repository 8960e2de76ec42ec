//! The conformance suite on the store.

use super::{BoxError, PostgresStore, Retention};
use std::cell::Cell;
use tidings::replay::{
    Run,
    conformance::{self, Keep},
};
use tokio_postgres::{Config, NoTls};

/// Runs the suite: each log in a schema of its own, and one that is opened again and again. The schemas are removed.
pub(crate) async fn check(config: &Config) -> Result<(), BoxError> {
    let prefix = format!("tidings_check_{}", Run::new_log().epoch);
    let made = Cell::new(0);
    let checked = Box::pin(conformance::check(async |keep| {
        made.set(made.get() + 1);
        open(config, &format!("{prefix}_{}", made.get()), keep).await
    }));
    let nodes = conformance::check_nodes(async |keep| {
        made.set(made.get() + 1);
        let schema = format!("{prefix}_{}", made.get());
        [open(config, &schema, keep).await, open(config, &schema, keep).await]
    });
    let verdict = match checked.await {
        Ok(()) => nodes.await,
        violated => violated,
    };
    let verdict = match verdict {
        Ok(()) => check_reopen(config, &format!("{prefix}_0")).await,
        Err(violation) => Err(violation.into()),
    };
    for n in 0..=made.get() {
        run(config, &format!("DROP SCHEMA IF EXISTS {prefix}_{n} CASCADE")).await?;
    }
    verdict
}

/// A log that is opened again is the same log, and begins no run: others may have it open. So here it is restored each
/// time, as far as the store can tell: the table that says where the run began is a new file.
async fn check_reopen(config: &Config, schema: &str) -> Result<(), BoxError> {
    let reopened = Cell::new(false);
    let checked = conformance::check_reopen(async |keep| {
        if reopened.replace(true) {
            run(config, &format!("VACUUM FULL {schema}.log")).await.expect("the table is rewritten");
        }
        open(config, schema, keep).await
    });
    Ok(checked.await?)
}

async fn open(config: &Config, schema: &str, keep: Keep) -> PostgresStore {
    let retention = Retention { events_per_topic: keep.events_per_topic, ..Retention::default() };
    PostgresStore::open(config.clone(), schema, retention).await.expect("a log")
}

/// Runs one statement, on a connection of its own.
async fn run(config: &Config, statement: &str) -> Result<(), BoxError> {
    let (client, connection) = config.connect(NoTls).await?;
    let statement = async {
        let ran = client.simple_query(statement).await;
        drop(client);
        ran
    };
    let (ran, ended) = tokio::join!(statement, connection);
    ran?;
    Ok(ended?)
}
