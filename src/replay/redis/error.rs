//! [`CallError`]: why a call had no answer, or which error was the answer; and what helps.
//!
//! Invariant: it never says a password, and says nothing twice: not by itself and once more as its source.

use redis::{ConnectionInfo, ErrorKind, RedisError, ServerErrorKind};
use std::{error::Error, fmt, sync::Arc, time::Duration};

/// Why a call had no answer, or which error was the answer.
#[derive(Debug, Clone)]
pub(super) struct CallError {
    pub(super) source: Arc<dyn Error + Send + Sync>,
    /// Where it is that could not be connected to.
    pub(super) at: Option<Arc<str>>,
    /// What helps, if it is known.
    pub(super) hint: &'static str,
    /// Whether the server may have done what it was asked.
    pub(super) is_unknown: bool,
    /// Whether it could be otherwise in a while.
    pub(super) is_passing: bool,
    /// Whether the server does not know the script.
    pub(super) is_no_script: bool,
}

/// Why there is no connection.
pub(super) enum Connecting {
    Failed(RedisError),
    /// There was none after this time.
    Late(Duration),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(at) = &self.at {
            write!(f, "cannot connect to Redis at {at}: ")?;
        }
        write!(f, "{}{}", self.source, self.hint)
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let said = self.source.to_string();
        let mut source = self.source.source();
        // The client's errors say what their source says.
        while let Some(same) = source.filter(|source| said.contains(&source.to_string())) {
            source = same.source();
        }
        source
    }
}

impl CallError {
    pub(super) fn new(source: impl Into<Box<dyn Error + Send + Sync>>, is_unknown: bool) -> Self {
        Self { source: source.into().into(), at: None, hint: "", is_unknown, is_passing: true, is_no_script: false }
    }

    /// One that a connection was not made for. `is_passing`: whether it may be otherwise in a while, whatever it is.
    pub(super) fn connecting(at: &ConnectionInfo, why: Connecting, is_passing: bool) -> Self {
        let (error, lasts, hint) = match why {
            // An answer that was cut off cannot be parsed either: so it is tried again, and called what it is only where
            // something else came in its place.
            Connecting::Failed(error) if is_foreign(&error) => {
                let text =
                    "what answers there is no Redis server (does it speak HTTP, or want TLS, which is `rediss://`?)";
                (Self::new(text, false), false, "")
            }
            Connecting::Failed(error) => {
                let (lasts, hint) = look_at(&error);
                (Self::new(error, false), lasts, hint)
            }
            Connecting::Late(after) => (Self::new(format!("there was no answer within {after:?}"), false), false, ""),
        };
        // Without the user and the password.
        Self { at: Some(at.addr().to_string().into()), hint, is_passing: is_passing || !lasts, ..error }
    }

    /// One that the server answered. It did nothing, unless it is a script that failed in the middle.
    pub(super) fn answered(error: RedisError) -> Self {
        let code = code_of(&error);
        let is_passing = matches!(
            code,
            "LOADING"
                | "BUSY"
                | "READONLY"
                | "MASTERDOWN"
                | "CLUSTERDOWN"
                | "TRYAGAIN"
                | "MOVED"
                | "ASK"
                | "NOREPLICAS"
                | "MISCONF"
        );
        let is_no_script = error.kind() == ErrorKind::Server(ServerErrorKind::NoScript);
        let is_unknown = matches!(code, "" | "ERR" | "WRONGTYPE" | "UNKILLABLE");
        let hint = if is_denied(&error) { DENIED } else { "" };
        Self { source: Arc::new(error), at: None, hint, is_unknown, is_passing, is_no_script }
    }
}

const DENIED: &str =
    " (the documentation of `RedisStore` has a line `ACL SETUSER` with all rights that its user needs)";

/// Whether what connecting failed with lasts until somebody changes something, and what helps.
fn look_at(error: &RedisError) -> (bool, &'static str) {
    if is_denied(error) {
        return (true, DENIED);
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => (true, " (are the user and the password in the URL right?)"),
        ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => (true, ""),
        // The client has no kinds of what went wrong with TLS.
        ErrorKind::Io => (error.to_string().contains("certificate"), ""),
        _ => match error.code() {
            Some("WRONGPASS") => (true, " (are the user and the password in the URL right?)"),
            Some("NOAUTH") => (true, " (the URL has no password: redis://user:password@host:6379/0)"),
            _ => (error.detail().is_some_and(|detail| detail.contains("out of range")), ""),
        },
    }
}

/// Whether the parser met something that no Redis says there.
fn is_foreign(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Parse && error.detail().is_some_and(|detail| detail.contains("Unexpected `"))
}

/// Whether the user lacks a right: asked of the server, or by a script, where it has no word of its own.
fn is_denied(error: &RedisError) -> bool {
    let text = error.detail().unwrap_or_default();
    error.code() == Some("NOPERM")
        || text.contains("ACL failure in script")
        || text.contains("The user executing the script can't")
}

/// The word that a server's error begins with.
pub(super) fn code_of(error: &RedisError) -> &str {
    // 6.2 wraps what the command of a script was answered. What is taken out here is answered to the first write.
    const WRAPPED: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN"];
    let code = error.code().unwrap_or_default();
    let text = error.detail().unwrap_or_default();
    if code != "ERR" {
        return code;
    }
    WRAPPED.into_iter().find(|wrapped| text.contains(&format!("-{wrapped} "))).unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::IntoConnectionInfo as _;
    use std::io;

    fn connecting(error: impl Into<Box<dyn Error + Send + Sync>>, other: bool) -> CallError {
        let at = "redis://user:secret@host:1/".into_connection_info().unwrap();
        CallError::connecting(&at, Connecting::Failed(io::Error::new(io::ErrorKind::InvalidData, error).into()), other)
    }

    #[test]
    fn a_certificate_is_not_waited_for_unless_there_is_another_server() {
        let error = connecting("invalid peer certificate: UnknownIssuer", false);
        assert!(!error.is_passing);
        assert_eq!(error.to_string(), "cannot connect to Redis at host:1: invalid peer certificate: UnknownIssuer");
        assert!(connecting("invalid peer certificate: UnknownIssuer", true).is_passing);
        assert!(connecting("the connection was reset", false).is_passing);
    }
}
