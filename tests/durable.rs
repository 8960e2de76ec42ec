//! The log on disk: it keeps the contract, its bounds and what it was told over restarts, and says what is wrong.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use std::time::Duration;
use tidings::replay::{
    Durable, DurableBuilder,
    conformance::{Keep, Violation, check, check_reopen},
};

fn builder(keep: Keep) -> DurableBuilder {
    keep.events_per_topic.map_or_else(Durable::builder, |events| Durable::builder().events_per_topic(events))
}

async fn conforms(relaxed: bool) -> Result<(), Violation> {
    let folder = Folder::new();
    let builder = |keep| if relaxed { builder(keep).sync_every(Duration::from_millis(5)) } else { builder(keep) };
    check(async |keep| builder(keep).open(folder.another()).await.unwrap()).await?;
    let path = folder.another();
    check_reopen(async |keep| builder(keep).open(&path).await.unwrap()).await
}

#[tokio::test]
async fn conforms_on_one_thread() -> Result<(), Violation> {
    conforms(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads() -> Result<(), Violation> {
    conforms(false).await
}

#[tokio::test]
async fn conforms_on_one_thread_when_it_syncs_later() -> Result<(), Violation> {
    conforms(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_on_several_threads_when_it_syncs_later() -> Result<(), Violation> {
    conforms(true).await
}
