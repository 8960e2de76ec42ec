//! A server that is away, or a connection that is cut, in the middle of things.

use crate::{
    A, DEADLINE, all, append, builder, fresh, next_record, open, record,
    support::{network::Network, redis::Redis},
    try_append, until,
};
use futures_util::StreamExt as _;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tidings::replay::{FeedItem, Read, ReadFrom, RedisStore, Refused, ReplayStore as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

#[tokio::test]
async fn while_the_server_is_away_appends_are_refused_and_afterwards_all_goes_on_by_itself() {
    let mut redis = Redis::durable().await;
    let name = fresh();
    let store = builder(&redis, &name).deadline(Duration::from_millis(300)).open().await.unwrap();
    let mut feed = store.feed(store.head().await.unwrap()).unwrap();
    append(&store, A, "before").await;
    assert_eq!(next_record(&mut feed).await.1, "before");
    redis.kill();
    // The first one may have been sent before the end of the connection was known.
    let lost = async { while !matches!(feed.next().await, Some(FeedItem::Lost)) {} };
    timeout(DEADLINE, lost).await.expect("the feed should say that it was cut off");
    until("the end of the connection should be known", async || {
        store.append([record(A, "away")].into()).await.is_err_and(|error| !error.is_unknown())
    })
    .await;
    let error = store.append([record(A, "away")].into()).await.unwrap_err();
    assert!(!error.is_unknown(), "{error:?}");
    assert!(store.read(Read::new(A, ReadFrom::Earliest)).await.is_err());
    assert!(store.head().await.is_err() && store.forget(A).await.is_err() && store.notify(Vec::new()).await.is_err());
    redis.start_again().await;
    until("the store should answer again", async || store.head().await.is_ok()).await;
    append(&store, A, "after").await;
    assert_eq!(all(&store, A).await, ["before", "after"]);
}

/// Not each of them after those before it have been waited for.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_all_who_read_are_told_in_time() {
    let mut redis = Redis::start().await;
    let store = Arc::new(builder(&redis, &fresh()).deadline(Duration::from_secs(2)).open().await.unwrap());
    redis.kill();
    let mut tasks = JoinSet::new();
    for n in 0..1000 {
        let store = Arc::clone(&store);
        let topic: tidings::Topic = format!("topic {n}").parse().unwrap();
        tasks.spawn(async move { store.read(Read::new(topic, ReadFrom::Earliest)).await.is_err() });
    }
    let told = timeout(DEADLINE, tasks.join_all()).await.expect("far less than 2 seconds for every 16 of them");
    assert!(told.into_iter().all(|told| told));
}

/// In a time that the application sets, which here is longer than the server is away.
#[tokio::test]
async fn an_append_waits_for_a_server_that_comes_back() {
    let mut redis = Redis::durable().await;
    let name = fresh();
    let store = builder(&redis, &name).deadline(DEADLINE).open().await.unwrap();
    append(&store, A, "before").await;
    redis.kill();
    let (waiting, ()) = tokio::join!(append(&store, A, "while it is away"), redis.start_again());
    assert_eq!(store.head().await.unwrap(), waiting);
    assert_eq!(all(&store, A).await, ["before", "while it is away"]);
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_stored_once() {
    let redis = Redis::start().await;
    let name = fresh();
    let network = Network::to(redis.address).await;
    let through = RedisStore::builder(format!("redis://{}/", network.address)).name(&name).deadline(DEADLINE);
    let store = through.open().await.unwrap();
    append(&store, A, "0").await;
    for n in 1..=3 {
        // The server gets the batch, and the node gets no answer, or only the beginning of one.
        match n {
            1 => network.go_silent(),
            2 => network.cut_after(1),
            _ => network.cut_after(20),
        }
        let records = [record(A, n), record(A, format!("{n}, keyed")).with_idempotency_key(n.to_string())];
        let outcomes = store.append(records.into()).await.unwrap();
        assert!(outcomes.iter().all(Result::is_ok), "a batch is no repeat of itself: {outcomes:?}");
    }
    let expected = ["0", "1", "1, keyed", "2", "2, keyed", "3", "3, keyed"];
    assert_eq!(all(&open(&redis, &name).await, A).await, expected);
    assert_eq!(store.head().await.unwrap().position(), 7);
}

/// The server is stopped with the batch on its way: what becomes of it is settled when it goes on, and does not change after
/// a read.
#[tokio::test]
async fn a_batch_that_was_given_up_is_not_stored_after_it_was_looked_for() {
    let redis = Redis::start().await;
    let name = fresh();
    let store = builder(&redis, &name).deadline(Duration::from_millis(300)).open().await.unwrap();
    append(&store, A, "before").await;
    redis.pause();
    let error = store.append([record(A, "unknown")].into()).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let error = store.append([record(A, "never sent")].into()).await.unwrap_err();
    redis.resume();
    let _ = error;
    until("the store should answer again", async || store.read(Read::new(A, ReadFrom::Earliest)).await.is_ok()).await;
    let found = all(&store, A).await;
    append(&store, A, "after").await;
    let later = all(&store, A).await;
    assert_eq!(later[..found.len()], found[..]);
    assert_eq!(later[found.len()..], ["after"]);
    assert!(!later.contains(&"never sent".to_owned()), "{later:?}");
}

#[tokio::test]
async fn a_publisher_that_retries_on_another_node_is_known_again() {
    let redis = Redis::start().await;
    let name = fresh();
    let network = Network::to(redis.address).await;
    let through = RedisStore::builder(format!("redis://{}/", network.address)).name(&name);
    let one = through.deadline(Duration::from_millis(200)).open().await.unwrap();
    let two = open(&redis, &name).await;
    // The server knows the script by now.
    append(&one, A, "first").await;
    let keyed = || record(A, "once").with_idempotency_key("request 7");
    network.go_silent();
    let error = one.append([keyed()].into()).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    let Err(Refused::Duplicate(cursor)) = try_append(&two, keyed()).await else { panic!("a repeat") };
    assert_eq!(cursor, two.head().await.unwrap());
    assert_eq!(all(&two, A).await, ["first", "once"]);
}

#[tokio::test]
async fn replicas_are_waited_for_if_that_is_asked() {
    let redis = Redis::start().await;
    let port = redis.address.port().to_string();
    let mut replica = Redis::with(&["--save", "", "--replicaof", "127.0.0.1", &port]).await;
    until("the replica should follow", async || {
        let info: String = redis.command(&["INFO", "replication"]).await;
        info.contains("state=online")
    })
    .await;
    let name = fresh();
    let waiting = || builder(&redis, &name).deadline(DEADLINE).wait_for_replicas(1, Duration::from_secs(30));
    let store = waiting().open().await.unwrap();
    append(&store, A, "on both").await;
    let keys: i64 = replica.command(&["EXISTS", &format!("{{{name}}}:s:a")]).await;
    assert_eq!(keys, 1);
    replica.kill();
    let store = builder(&redis, &name).wait_for_replicas(1, Duration::from_millis(50)).open().await.unwrap();
    let error = store.append([record(A, "on one")].into()).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    assert_eq!(all(&store, A).await, ["on both", "on one"]);
}

/// What the docs say of a server that has no room.
#[tokio::test]
async fn a_server_without_memory_refuses() {
    let redis = Redis::start().await;
    let store = open(&redis, &fresh()).await;
    append(&store, A, "before").await;
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = store.append([record(A, "no room")].into()).await.unwrap_err();
    assert!(!error.is_unknown(), "{error:?}");
    let _: String = redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    append(&store, A, "after").await;
    assert_eq!(all(&store, A).await, ["before", "after"]);
}

/// A network that can keep what is sent for later.
struct Post {
    address: SocketAddr,
    is_kept: Arc<AtomicBool>,
    deliver: Arc<Notify>,
    delivered: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Post {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_kept, deliver) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let mut task = JoinSet::new();
        let delivered = Arc::new(AtomicUsize::new(0));
        let (kept, call, count) = (Arc::clone(&is_kept), Arc::clone(&deliver), Arc::clone(&delivered));
        task.spawn(async move {
            let mut lines = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                lines.spawn(carry(client, server, Arc::clone(&kept), Arc::clone(&call), Arc::clone(&count)));
            }
        });
        Self { address, is_kept, deliver, delivered, _task: task }
    }
}

async fn carry(
    client: TcpStream,
    server: SocketAddr,
    is_kept: Arc<AtomicBool>,
    deliver: Arc<Notify>,
    delivered: Arc<AtomicUsize>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
    let there = async {
        let (mut buffer, mut kept) = (vec![0; 65536], Vec::new());
        loop {
            let count = from_client.read(&mut buffer).await.unwrap_or(0);
            kept.extend_from_slice(&buffer[..count]);
            if count == 0 && !kept.is_empty() {
                // The client is gone, and what it sent still comes.
                deliver.notified().await;
                let _ = to_server.write_all(&kept).await;
                delivered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if count == 0 || !is_kept.load(Ordering::Relaxed) {
                let _ = to_server.write_all(&kept).await;
                kept.clear();
            }
            if count == 0 {
                return;
            }
        }
    };
    let back = async { drop(tokio::io::copy(&mut from_server, &mut to_client).await) };
    tokio::join!(there, back);
}

#[tokio::test]
async fn a_batch_that_comes_after_it_was_given_up_is_not_stored() {
    let redis = Redis::start().await;
    let name = fresh();
    let post = Post::to(redis.address).await;
    let store = RedisStore::builder(format!("redis://{}/", post.address)).name(&name);
    let store = store.deadline(Duration::from_millis(300)).open().await.unwrap();
    append(&store, A, "before").await;
    post.is_kept.store(true, Ordering::Relaxed);
    let error = store.append([record(A, "late")].into()).await.unwrap_err();
    assert!(error.is_unknown(), "{error:?}");
    post.is_kept.store(false, Ordering::Relaxed);
    assert_eq!(all(&store, A).await, ["before"]);
    post.deliver.notify_waiters();
    until("what was kept should come", async || post.delivered.load(Ordering::Relaxed) > 0).await;
    assert_eq!(all(&store, A).await, ["before"]);
    append(&store, A, "after").await;
    assert_eq!(all(&store, A).await, ["before", "after"]);
}
