//! [`Topic`] and [`Topics`]: what an event is published to, and what a subscription follows.
//!
//! Invariant: two topics are equal only if they were made of equal parts; no text in one part can reach into another.

use crate::field::Text;
use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Stands between the parts of a scoped topic. No part can contain it, because no part can contain a control character.
const SEPARATOR: char = '\u{1f}';

/// The name of one sequence of events, cheap to clone.
///
/// A name is any text of 1 to 512 bytes without control characters. Where a part of the name comes from a user or a
/// tenant, use [`Topic::scoped`]: pasting parts together with a separator of your own lets a part that contains the
/// separator name someone else's topic.
///
/// ```
/// use tidings::Topic;
///
/// let prices = Topic::new("prices")?;
/// let orders = Topic::scoped("acme", "orders/eu")?;
/// assert_ne!(orders, Topic::scoped("acme/orders", "eu")?);
/// # Ok::<(), tidings::TopicError>(())
/// ```
#[derive(Clone)]
pub struct Topic(Text);

impl Topic {
    /// The most bytes that a name, or a tenant, can have.
    pub const MAX_LEN: usize = 512;

    /// A topic by its name.
    ///
    /// # Errors
    ///
    /// When the name is empty, longer than 512 bytes, or contains a control character.
    pub fn new(name: impl AsRef<str>) -> Result<Self, TopicError> {
        check("name", name.as_ref())?;
        Ok(Self(Text::Shared(name.as_ref().into())))
    }

    /// A topic from a literal, without an allocation.
    ///
    /// # Panics
    ///
    /// When the literal is empty, longer than 512 bytes, or contains a control character; in a `const` that is an error
    /// of the compiler.
    ///
    /// ```
    /// const NEWS: tidings::Topic = tidings::Topic::from_static("news");
    /// ```
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= Self::MAX_LEN, "this literal is no topic: it is empty or too long");
        let mut at = 0;
        while at < bytes.len() {
            // The other control characters, U+0080 to U+009F, are C2 80 to C2 9F.
            let other = bytes[at] == 0xc2 && bytes[at + 1] <= 0x9f;
            let control = bytes[at].is_ascii_control() || other;
            assert!(!control, "this literal is no topic: it contains a control character");
            at += 1;
        }
        Self(Text::Static(name))
    }

    /// A tenant's topic: never equal to another tenant's, nor to an unscoped one, whatever the texts contain.
    ///
    /// # Errors
    ///
    /// As [`Topic::new`], for each part.
    pub fn scoped(tenant: impl AsRef<str>, name: impl AsRef<str>) -> Result<Self, TopicError> {
        check("tenant", tenant.as_ref())?;
        check("name", name.as_ref())?;
        let key = format!("{}{SEPARATOR}{}", tenant.as_ref(), name.as_ref());
        Ok(Self(Text::Shared(key.into())))
    }

    /// The tenant of a scoped topic.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.as_key().split_once(SEPARATOR).map(|(tenant, _)| tenant)
    }

    /// The name, without the tenant.
    #[must_use]
    pub fn name(&self) -> &str {
        self.as_key().split_once(SEPARATOR).map_or(self.as_key(), |(_, name)| name)
    }

    /// Whether one is a clone of the other, or both of a third, which is quicker to find out than whether they are equal.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        std::ptr::eq(self.as_key(), other.as_key())
    }

    /// One text for both parts, different for different topics: what a store uses as a key.
    #[must_use]
    pub fn as_key(&self) -> &str {
        self.0.as_str()
    }

    /// The topic that [`as_key`](Self::as_key) was taken from.
    ///
    /// # Errors
    ///
    /// When the text is not a key.
    pub fn from_key(key: &str) -> Result<Self, TopicError> {
        match key.split_once(SEPARATOR) {
            Some((tenant, name)) => Self::scoped(tenant, name),
            None => Self::new(key),
        }
    }
}

fn check(part: &'static str, text: &str) -> Result<(), TopicError> {
    let kind = if text.is_empty() {
        Kind::Empty
    } else if text.len() > Topic::MAX_LEN {
        Kind::TooLong(text.len())
    } else if let Some(control) = text.chars().find(|c| c.is_control()) {
        Kind::Control(control)
    } else {
        return Ok(());
    };
    Err(TopicError { part, kind })
}

impl PartialEq for Topic {
    fn eq(&self, other: &Self) -> bool {
        self.as_key() == other.as_key()
    }
}

impl Eq for Topic {}

impl PartialOrd for Topic {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Topic {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_key().cmp(other.as_key())
    }
}

impl Hash for Topic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_key().hash(state);
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tenant() {
            Some(tenant) => write!(f, "{tenant}/{}", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tenant() {
            Some(tenant) => write!(f, "Topic({tenant:?}, {:?})", self.name()),
            None => write!(f, "Topic({:?})", self.name()),
        }
    }
}

impl TryFrom<&str> for Topic {
    type Error = TopicError;

    fn try_from(name: &str) -> Result<Self, TopicError> {
        Self::new(name)
    }
}

impl TryFrom<String> for Topic {
    type Error = TopicError;

    fn try_from(name: String) -> Result<Self, TopicError> {
        Self::new(name)
    }
}

impl std::str::FromStr for Topic {
    type Err = TopicError;

    fn from_str(name: &str) -> Result<Self, TopicError> {
        Self::new(name)
    }
}

/// Why a text cannot name a [`Topic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicError {
    part: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Empty,
    TooLong(usize),
    Control(char),
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = self.part;
        match self.kind {
            Kind::Empty => write!(f, "the {part} of the topic is empty"),
            Kind::TooLong(len) => {
                write!(f, "the {part} of the topic has {len} bytes, more than the {} allowed", Topic::MAX_LEN)
            }
            Kind::Control(c) => write!(f, "the {part} of the topic contains the control character {c:?}"),
        }
    }
}

impl std::error::Error for TopicError {}

/// The topics of one subscription: at least one, none twice, and no more than a limit.
///
/// The limit stands where the list is made, because that is where a client's request becomes topics: 64 unless you say
/// otherwise with [`Topics::with_limit`].
///
/// ```
/// use tidings::{Topic, Topics};
///
/// let one: Topics = Topic::new("prices")?.into();
/// let asked = ["prices", "news", "prices"].map(Topic::new).into_iter().collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(Topics::new(asked)?.len(), 2);
/// assert!(Topics::new([]).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topics(Arc<[Topic]>);

impl Topics {
    /// The limit of [`Topics::new`]: each topic costs work at every wake-up and memory for as long as the client stays.
    pub const DEFAULT_LIMIT: usize = 64;

    /// Up to 64 topics; repeated ones count once.
    ///
    /// # Errors
    ///
    /// When there is none, or more than 64.
    pub fn new(topics: impl IntoIterator<Item = Topic>) -> Result<Self, TopicsError> {
        Self::with_limit(topics, Self::DEFAULT_LIMIT)
    }

    /// Up to `limit` topics; repeated ones count once.
    ///
    /// # Errors
    ///
    /// When there is none, or more than `limit`.
    pub fn with_limit(topics: impl IntoIterator<Item = Topic>, limit: usize) -> Result<Self, TopicsError> {
        let mut kept = std::collections::BTreeSet::new();
        for topic in topics {
            kept.insert(topic);
            if kept.len() > limit {
                return Err(TopicsError::TooMany { limit });
            }
        }
        if kept.is_empty() {
            return Err(TopicsError::None);
        }
        Ok(Self(kept.into_iter().collect()))
    }

    /// How many topics there are; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The topics, in the order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Topic> {
        self.0.iter()
    }

    /// Whether `topic` is one of them.
    #[must_use]
    pub fn contains(&self, topic: &Topic) -> bool {
        self.0.binary_search(topic).is_ok()
    }
}

impl From<&Topic> for Topic {
    fn from(topic: &Topic) -> Self {
        topic.clone()
    }
}

impl From<Topic> for Topics {
    fn from(topic: Topic) -> Self {
        Self([topic].into())
    }
}

impl From<&Topic> for Topics {
    fn from(topic: &Topic) -> Self {
        topic.clone().into()
    }
}

impl From<&Topics> for Topics {
    fn from(topics: &Topics) -> Self {
        topics.clone()
    }
}

impl<'a> IntoIterator for &'a Topics {
    type Item = &'a Topic;
    type IntoIter = std::slice::Iter<'a, Topic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// Why a list cannot be the [`Topics`] of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicsError {
    /// The list is empty.
    None,
    /// The list has more different topics than the limit.
    TooMany {
        /// The limit.
        limit: usize,
    },
}

impl fmt::Display for TopicsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("a subscription needs at least one topic"),
            Self::TooMany { limit } => write!(f, "a subscription can follow at most {limit} topics here"),
        }
    }
}

impl std::error::Error for TopicsError {}
