//! Event ids and event types: what the format allows in them, and the error when it does not.
//!
//! Both are checked once, when they are made, so that nothing further down can fail or has to look again.

use std::{fmt, sync::Arc};

/// A string that is either a literal or shared; cloning never copies the text.
#[derive(Clone)]
pub(crate) enum Text {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Text {
    fn new(text: &str) -> Self {
        Self::Shared(text.into())
    }

    const fn from_static(text: &'static str) -> Self {
        Self::Static(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Static(text) => text,
            Self::Shared(text) => text,
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Static(text) => text.as_bytes(),
            Self::Shared(text) => text.as_bytes(),
        }
    }
}

/// A string that mostly is short, and then needs no allocation: a stream makes one for each event.
#[derive(Clone)]
enum Id {
    /// The bytes up to the length are UTF-8.
    Short(u8, [u8; SHORT]),
    Long(Text),
}

/// Room for any number, and as much as makes [`Id`] no larger than [`Text`].
const SHORT: usize = 22;

impl Id {
    fn new(text: &str) -> Self {
        let mut short = [0; SHORT];
        match (u8::try_from(text.len()), short.get_mut(..text.len())) {
            (Ok(len), Some(start)) => {
                start.copy_from_slice(text.as_bytes());
                Self::Short(len, short)
            }
            _ => Self::Long(Text::new(text)),
        }
    }

    const fn from_static(text: &'static str) -> Self {
        Self::Long(Text::from_static(text))
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Short(..) => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(text) => text.as_str(),
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(len, bytes) => &bytes[..usize::from(*len)],
            Self::Long(text) => text.as_bytes(),
        }
    }
}

/// The `id:` of an event: any text without CR, LF or NUL.
///
/// A client keeps the id of the last event it received and sends it as `Last-Event-ID` when it reconnects. The empty
/// id is allowed and means what the standard gives it: the client forgets the last id.
///
/// Ids of `[A-Za-z0-9._~-]` and at most 128 bytes are sure to need no CORS preflight when an `EventSource` of another
/// origin reconnects. Chromium sends none for others either; not every browser has to be as lenient.
///
/// See [HTML, 9.2.6](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
///
/// ```
/// use tidings::EventId;
///
/// assert_eq!(EventId::new("42")?.as_str(), "42");
/// assert!(EventId::new("4\n2").is_err());
/// # Ok::<(), tidings::FieldError>(())
/// ```
#[derive(Clone)]
pub struct EventId(Id);

/// The `event:` of an event, the name that `addEventListener` takes: any text without CR or LF, and not empty.
///
/// An empty type would reach the client as `message`, so it is refused: leave the type out instead.
///
/// See [HTML, 9.2.6](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
///
/// ```
/// use tidings::EventType;
///
/// const UPDATE: EventType = EventType::from_static("update");
/// assert_eq!(EventType::new("update")?, UPDATE);
/// assert!(EventType::new("up\rdate").is_err());
/// # Ok::<(), tidings::FieldError>(())
/// ```
#[derive(Clone)]
pub struct EventType(Text);

const fn check_id(text: &str) -> Result<(), FieldError> {
    match first_of(text, b"\r\n\0") {
        Some((index, byte)) => Err(FieldError(Kind::Forbidden { field: "event id", byte, index })),
        None => Ok(()),
    }
}

const fn check_type(text: &str) -> Result<(), FieldError> {
    if text.is_empty() {
        return Err(FieldError(Kind::EmptyType));
    }
    match first_of(text, b"\r\n") {
        Some((index, byte)) => Err(FieldError(Kind::Forbidden { field: "event type", byte, index })),
        None => Ok(()),
    }
}

/// The first byte of `text` that is one of `bytes`; `const`, which `memchr` is not.
const fn first_of(text: &str, bytes: &[u8]) -> Option<(usize, u8)> {
    let text = text.as_bytes();
    let mut at = 0;
    while at < text.len() {
        let mut each = 0;
        while each < bytes.len() {
            if text[at] == bytes[each] {
                return Some((at, text[at]));
            }
            each += 1;
        }
        at += 1;
    }
    None
}

macro_rules! text_field {
    ($name:ident, $text:ident, $check:ident, $what:literal, $bad:literal) => {
        impl $name {
            #[doc = concat!("Checks `text` and makes it an ", $what, ".")]
            ///
            /// # Errors
            ///
            #[doc = concat!("When the text ", $bad, ". The text is never altered.")]
            pub fn new(text: impl AsRef<str>) -> Result<Self, FieldError> {
                let text = text.as_ref();
                $check(text)?;
                Ok(Self($text::new(text)))
            }

            #[doc = concat!("An ", $what, " from a literal, without an allocation.")]
            ///
            /// # Panics
            ///
            #[doc = concat!("When the text ", $bad, "; in a `const` that is an error of the compiler.")]
            #[must_use]
            pub const fn from_static(text: &'static str) -> Self {
                assert!($check(text).is_ok(), concat!("this literal is not an ", $what, ": it ", $bad));
                Self($text::from_static(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The text, for the encoder, which does not ask again whether it is UTF-8.
            #[inline]
            pub(crate) fn as_bytes(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.as_str() == other.as_str()
            }
        }

        impl Eq for $name {}

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:?})"), self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = FieldError;

            fn from_str(text: &str) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = FieldError;

            fn try_from(text: &str) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = FieldError;

            fn try_from(text: String) -> Result<Self, FieldError> {
                Self::new(text)
            }
        }
    };
}

text_field!(EventId, Id, check_id, "event id", "contains CR, LF or NUL");
text_field!(EventType, Text, check_type, "event type", "is empty or contains CR or LF");

impl From<u64> for EventId {
    fn from(number: u64) -> Self {
        Self(Id::new(itoa::Buffer::new().format(number)))
    }
}

/// Why a text cannot be an [`EventId`] or an [`EventType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldError(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forbidden { field: &'static str, byte: u8, index: usize },
    EmptyType,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Forbidden { field, byte, index } => {
                let name = match byte {
                    b'\r' => "a carriage return",
                    b'\n' => "a line feed",
                    _ => "a NUL",
                };
                write!(f, "{name} at byte {index} of the {field}: it would end or void the field on the wire")
            }
            Kind::EmptyType => {
                f.write_str("the event type is empty, which clients read as \"message\": leave the type out instead")
            }
        }
    }
}

impl std::error::Error for FieldError {}
