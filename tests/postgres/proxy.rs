//! What can become of a `COMMIT` on its way, and of its answer.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_postgres::Config;

/// What happens to the next `COMMIT`; then all pass again.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fate {
    Passes,
    /// The connection is cut before the server has it.
    Lost,
    /// The connection is cut before the answer is through.
    Unanswered,
    /// All connections are cut, no new one is let through, and the server has it when it is released.
    Held,
}

/// A way to the server; it ends with its value.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    server: PathBuf,
    fate: Mutex<Fate>,
    commits: AtomicUsize,
    held: Mutex<Option<(UnixStream, Vec<u8>)>>,
    /// Whether the way is closed, for new connections and for those that are there.
    closed: watch::Sender<bool>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(crate) async fn to(server: PathBuf) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            fate: Mutex::new(Fate::Passes),
            commits: AtomicUsize::new(0),
            held: Mutex::default(),
            closed: watch::Sender::new(false),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.address.port()).user("postgres").dbname("postgres");
        config
    }

    pub(crate) fn next_commit(&self, fate: Fate) {
        *self.shared.fate.lock().unwrap() = fate;
    }

    /// How many met their fate.
    pub(crate) fn commits(&self) -> usize {
        self.shared.commits.load(SeqCst)
    }

    /// Cuts all connections, and lets no new one through.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.shared.closed.send_replace(false);
    }

    /// Gives the server what was held, and waits until it has answered or closed the connection.
    pub(crate) async fn release(&self) {
        let (mut server, bytes) = self.shared.held.lock().unwrap().take().expect("a commit is held");
        // A server that has ended the backend does not take it.
        let _ = server.write_all(&bytes).await;
        let _ = server.read(&mut [0; 1024]).await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if !*shared.closed.borrow() {
            connections.spawn(relay(client, Arc::clone(&shared)));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(mut client: TcpStream, shared: Arc<Shared>) {
    // A server that is being restarted is not there.
    let Ok(mut server) = UnixStream::connect(&shared.server).await else { return };
    let mut subscribed = shared.closed.subscribe();
    let mut closed = pin!(async move { drop(subscribed.wait_for(|closed| *closed).await) });
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            () = closed.as_mut() => return,
            read = client.read(&mut from_client) => {
                let Ok(len @ 1..) = read else { return };
                let bytes = &from_client[..len];
                // The driver sends it alone, because it waits for the answers of what it sent before.
                let fate = if bytes.starts_with(b"Q") && bytes.ends_with(b"COMMIT\0") { shared.take_fate() } else { Fate::Passes };
                match fate {
                    Fate::Passes => {}
                    Fate::Lost => return,
                    Fate::Unanswered => {
                        let _ = server.write_all(bytes).await;
                        let _ = server.read(&mut from_server).await;
                        return;
                    }
                    Fate::Held => {
                        *shared.held.lock().unwrap() = Some((server, bytes.to_vec()));
                        shared.closed.send_replace(true);
                        return;
                    }
                }
                if server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(len @ 1..) = read else { return };
                if client.write_all(&from_server[..len]).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Shared {
    fn take_fate(&self) -> Fate {
        let fate = std::mem::replace(&mut *self.fate.lock().unwrap(), Fate::Passes);
        self.commits.fetch_add(usize::from(fate != Fate::Passes), SeqCst);
        fate
    }
}
