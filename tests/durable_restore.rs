//! A log that was rewound to an older copy, under the clients of a hub: none of them misses an event without being told.

#[path = "durable/folder.rs"]
mod folder;

use folder::Folder;
use futures_util::{FutureExt as _, StreamExt as _};
use std::{path::Path, time::Duration};
use tidings::{
    Event, GapReason, Hub, Message, Subscription, Topic,
    replay::{Cursor, Durable, DurableBuilder},
    test_util::{next_event, next_message},
};

const T: Topic = Topic::from_static("t");
const OTHER: Topic = Topic::from_static("other");

fn policies() -> [DurableBuilder; 2] {
    [Durable::builder(), Durable::builder().sync_every(Duration::from_millis(50))]
}

async fn open(builder: &DurableBuilder, path: &Path) -> Hub {
    // The one before is let go of a moment after its hub.
    loop {
        match builder.clone().open(path).await {
            Ok(log) => return Hub::builder().open(log).await.unwrap(),
            Err(error) => assert!(error.is_in_use(), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn publish(hub: &Hub, texts: std::ops::Range<u32>) -> Vec<Cursor> {
    let mut ids = Vec::new();
    for text in texts {
        ids.push(hub.publish(T, Event::new().data(text.to_string())).await.unwrap());
        hub.publish(OTHER, Event::new()).await.unwrap();
    }
    ids
}

async fn expect(subscription: &mut Subscription, texts: impl IntoIterator<Item = u32>) {
    for text in texts {
        assert_eq!(next_event(subscription).await.record().data().unwrap(), text.to_string());
    }
}

async fn expect_gap(subscription: &mut Subscription, reason: GapReason) {
    match next_message(subscription).await {
        Some(Message::Gap(gap)) => assert_eq!(gap.reason, reason),
        other => panic!("expected a gap, but there is {other:?}"),
    }
}

/// The log is closed, its folder is copied, it goes on, and then the copy is put in its place.
#[tokio::test]
async fn clients_with_newer_ids_are_told_of_a_gap_and_then_get_what_is_new() {
    for builder in policies() {
        let folder = Folder::new();
        let (path, copy) = (folder.another(), folder.another());
        let hub = open(&builder, &path).await;
        let mut ids = publish(&hub, 0..10).await;
        drop(hub);
        drop(open(&builder, &path).await);
        drop(open(&builder, &path).await);
        folder::copy(&path, &copy);
        let hub = open(&builder, &path).await;
        let mut client = hub.subscribe(T).resume(ids[9]);
        let primed = hub.subscribe(T).opened().await.unwrap().cursor().unwrap();
        ids.extend(publish(&hub, 10..20).await);
        expect(&mut client, 10..20).await;
        assert_eq!(client.cursor(), ids.last().copied());
        drop((client, hub));

        std::fs::remove_dir_all(&path).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        let hub = open(&builder, &path).await;
        let older: Vec<_> = ids[..10].iter().map(|id| hub.subscribe(T).resume(*id)).collect();
        let newer = ids[10..].iter().chain([&primed]).map(|id| hub.subscribe(T).resume(*id));
        let newer: Vec<_> = newer.map(Subscription::opened).collect();
        let mut newer = futures_util::future::try_join_all(newer).await.unwrap();
        // More than there were, so that each place that was given is given again.
        let next = publish(&hub, 100..115).await;
        assert!(next.last().unwrap().position() > ids.last().unwrap().position());
        for client in &mut newer {
            expect_gap(client, GapReason::Foreign).await;
            expect(client, 100..115).await;
            assert!(client.next().now_or_never().is_none());
        }
        for (n, mut client) in (1..).zip(older) {
            expect(&mut client, (n..10).chain(100..115)).await;
        }
        // Who comes only now, when those places have events again, is told too.
        for id in &ids[10..] {
            let mut client = hub.subscribe(T).resume(*id);
            expect_gap(&mut client, GapReason::Foreign).await;
        }
    }
}

/// The log is copied while it is in use. Then it is known that it is a copy, and all are told.
#[tokio::test]
async fn a_copy_made_in_use_is_whole_and_tells_everyone_of_a_gap() {
    for builder in policies() {
        let folder = Folder::new();
        let (path, copy) = (folder.another(), folder.another());
        let log = std::sync::Arc::new(builder.clone().open(&path).await.unwrap());
        let hub = Hub::builder().open(std::sync::Arc::clone(&log)).await.unwrap();
        let mut ids = publish(&hub, 0..10).await;
        let (copied, more) = tokio::join!(log.copy_to(&copy), publish(&hub, 10..30));
        copied.unwrap();
        ids.extend(more);
        let error = log.copy_to(&copy).await.unwrap_err();
        assert!(error.to_string().contains("copy to another folder"), "{error}");
        drop((hub, log));

        let hub = open(&builder, &copy).await;
        let clients: Vec<_> = ids.iter().map(|id| hub.subscribe(T).resume(*id).opened()).collect();
        let mut clients = futures_util::future::try_join_all(clients).await.unwrap();
        publish(&hub, 100..140).await;
        let mut all = Vec::new();
        let mut reasons = Vec::new();
        for client in &mut clients {
            let Some(Message::Gap(gap)) = next_message(client).await else { panic!("each is told of a gap") };
            reasons.push(gap.reason);
            let mut texts: Vec<u32> = Vec::new();
            while texts.last() != Some(&139) {
                let entry = next_event(client).await;
                let text = entry.record().data().unwrap().parse().unwrap();
                // What the copy has follows the gap, at places before its end; what is new is after it.
                assert_eq!(entry.cursor().position() <= gap.through.position(), text < 100, "{gap:?}: {entry:?}");
                texts.push(text);
            }
            assert!(texts.ends_with(&(100..140).collect::<Vec<_>>()), "{texts:?}");
            all.push(texts);
        }
        // In the copy is one moment, and nothing in it is missing.
        let held = all[0].iter().filter(|text| **text < 100).count();
        assert!((9..30).contains(&held), "{held}");
        assert!(all[0].iter().copied().eq((1..=u32::try_from(held).unwrap()).chain(100..140)), "{:?}", all[0]);
        // Whose id the copy knows has lost what came after it; the others have an id that nothing is known of.
        let (known, unknown) = reasons.split_at(held + 1);
        assert!(known.iter().all(|reason| *reason == GapReason::Evicted), "{reasons:?}");
        assert!(unknown.iter().all(|reason| *reason == GapReason::Foreign), "{reasons:?}");
        // Once: who has seen it goes on as ever.
        let last = clients[0].cursor().unwrap();
        drop((clients, hub));
        let hub = open(&builder, &copy).await;
        let mut client = hub.subscribe(T).resume(last);
        publish(&hub, 140..141).await;
        expect(&mut client, [140]).await;
    }
}
