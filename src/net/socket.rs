//! The options of a TCP socket: which, and how the settings become what the kernel wants.

use socket2::{SockRef, TcpKeepalive};
use std::{io, time::Duration};

/// Linux takes no longer times than this for keep-alive, and no longer user time-out than fits into 32 bits.
const LONGEST: Duration = Duration::from_secs(32_767);

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) dead_peer_timeout: Option<Duration>,
    pub(super) send_buffer: Option<usize>,
    pub(super) nodelay: bool,
}

impl Options {
    /// Sets them on a stream, or on a listener.
    pub(super) fn set<'s>(&self, socket: impl Into<SockRef<'s>>) -> io::Result<()> {
        let socket = socket.into();
        named("TCP_NODELAY", socket.set_tcp_nodelay(self.nodelay))?;
        if let Some(bytes) = self.send_buffer {
            named("SO_SNDBUF", socket.set_send_buffer_size(bytes))?;
        }
        if let Some(timeout) = self.dead_peer_timeout {
            let timeout = timeout.clamp(Duration::from_millis(1), LONGEST);
            #[cfg(any(target_os = "linux", target_os = "android"))]
            named("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(user_timeout(timeout))))?;
            named("SO_KEEPALIVE", socket.set_tcp_keepalive(&keep_alive(timeout)))?;
        }
        Ok(())
    }
}

/// Linux counts from when it first repeats what was not acknowledged, and takes a few tenths of a second more.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn user_timeout(timeout: Duration) -> Duration {
    timeout.saturating_sub((timeout / 4).min(Duration::from_millis(750))).max(Duration::from_millis(1))
}

/// Two thirds of the time without a sign of life, then two probes in what is left. A connection on which a heartbeat is
/// acknowledged every 15 seconds is not probed at all. How often is the system's own choice where it cannot be told.
fn keep_alive(timeout: Duration) -> TcpKeepalive {
    let second = Duration::from_secs(1);
    let keep_alive = TcpKeepalive::new().with_time((timeout * 2 / 3).max(second));
    #[cfg(any(
        target_os = "android",
        target_os = "freebsd",
        target_os = "illumos",
        target_os = "ios",
        target_os = "linux",
        target_os = "macos",
        target_os = "netbsd",
        target_os = "windows",
    ))]
    let keep_alive = keep_alive.with_interval((timeout / 6).max(second)).with_retries(2);
    keep_alive
}

fn named(option: &str, result: io::Result<()>) -> io::Result<()> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{option}: {error}")))
}
