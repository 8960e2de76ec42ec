//! A network between clients and a server that fails when told to.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{AbortHandle, JoinSet},
};

pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    line: Arc<Mutex<Line>>,
    // Ends with the network.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Line {
    connections: Vec<AbortHandle>,
    /// How many of the connections, the oldest first, carry nothing any more.
    silent: usize,
    /// How many bytes the server has got through to the clients.
    carried: usize,
    /// How many bytes the clients still get before all connections are cut.
    left: Option<usize>,
    /// What the next connection is answered, in place of the server.
    answer: Option<String>,
    /// New connections are closed at once.
    down: bool,
}

impl Network {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(Mutex::new(Line::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, Arc::clone(&line)));
        Self { address, line, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.line.lock().unwrap().connections.len()
    }

    /// How many bytes the server has got through to the clients.
    pub(crate) fn carried(&self) -> usize {
        self.line.lock().unwrap().carried
    }

    /// Cuts all connections once the clients have got this many bytes more, in the middle of whatever that is.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.line.lock().unwrap().left = Some(bytes);
    }

    /// Cuts all connections now.
    pub(crate) fn cut(&self) {
        self.line.lock().unwrap().cut();
    }

    /// Lets nothing through any more on the connections there are, and leaves them open.
    pub(crate) fn go_silent(&self) {
        let mut line = self.line.lock().unwrap();
        line.silent = line.connections.len();
    }

    /// Until it is repaired: cuts all connections, and closes new ones at once; or lets nothing through, on new ones neither.
    pub(crate) fn break_down(&self, silently: bool) {
        let mut line = self.line.lock().unwrap();
        if silently {
            line.silent = usize::MAX;
        } else {
            line.down = true;
            line.cut();
        }
    }

    /// New connections are good again.
    pub(crate) fn repair(&self) {
        let mut line = self.line.lock().unwrap();
        line.down = false;
        line.silent = line.connections.len();
    }

    /// Cuts all connections now, and answers the next one in place of the server.
    pub(crate) fn cut_and_answer(&self, response: impl Into<String>) {
        let mut line = self.line.lock().unwrap();
        line.answer = Some(response.into());
        line.cut();
    }
}

impl Line {
    fn cut(&mut self) {
        self.left = None;
        self.connections.iter().for_each(AbortHandle::abort);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, line: Arc<Mutex<Line>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        // Held until the connection is counted: what fails all connections must not miss one.
        let mut state = line.lock().unwrap();
        if state.down {
            continue;
        }
        let number = state.connections.len();
        let answer = state.answer.take();
        let line = Arc::clone(&line);
        state.connections.push(connections.spawn(async move {
            let _ = match answer {
                Some(answer) => respond(client, &answer).await,
                None => relay(client, server, number, &line).await,
            };
        }));
    }
}

async fn respond(mut client: TcpStream, response: &str) -> io::Result<()> {
    // A socket that is closed with something unread resets the connection, and the response is lost.
    let _request = client.read(&mut [0; 4096]).await?;
    client.write_all(response.as_bytes()).await
}

async fn relay(client: TcpStream, server: SocketAddr, number: usize, line: &Mutex<Line>) -> io::Result<()> {
    let (from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
    let (mut from_client, to_client) = client.into_split();
    tokio::select! {
        result = tokio::io::copy(&mut from_client, &mut to_server) => result.map(drop),
        result = to_the_client(from_server, to_client, number, line) => result,
    }
}

async fn to_the_client(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    line: &Mutex<Line>,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let (silent, left) = {
            let state = line.lock().unwrap();
            (number < state.silent, state.left)
        };
        if silent {
            continue;
        }
        let count = left.map_or(count, |left| count.min(left));
        to.write_all(&buffer[..count]).await?;
        let mut state = line.lock().unwrap();
        state.carried += count;
        if let Some(left) = &mut state.left {
            *left = left.saturating_sub(count);
            if *left == 0 {
                state.cut();
            }
        }
    }
}
