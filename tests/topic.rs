//! Names of topics: no text in one part can reach into another.

use proptest::prelude::*;
use tidings::{Topic, Topics, TopicsError};

#[test]
fn a_name_is_1_to_512_bytes_without_control_characters() {
    assert!(Topic::new("a").is_ok() && Topic::new("x".repeat(512)).is_ok() && Topic::new("a/b:c d é").is_ok());
    for bad in ["", "a\nb", "a\0", "\u{1f}", "\u{7f}", "\u{85}", &"x".repeat(513)] {
        assert!(Topic::new(bad).is_err(), "{bad:?}");
        assert!(Topic::scoped(bad, "a").is_err() && Topic::scoped("a", bad).is_err());
    }
    assert_eq!(Topic::new("").unwrap_err().to_string(), "the name of the topic is empty");
    assert_eq!(Topic::scoped("", "a").unwrap_err().to_string(), "the tenant of the topic is empty");
}

#[test]
fn a_literal_is_the_same_topic() {
    const NEWS: Topic = Topic::from_static("news");
    assert_eq!(NEWS, Topic::new("news").unwrap());
    assert!(Topics::from(&NEWS).contains(&Topic::new("news").unwrap()));
}

#[test]
#[should_panic(expected = "control character")]
fn a_bad_literal_panics() {
    let _ = Topic::from_static("a\u{1f}b");
}

#[test]
#[should_panic(expected = "control character")]
fn a_bad_literal_beyond_ascii_panics() {
    let _ = Topic::from_static("é\u{85}");
}

#[test]
fn a_subscription_has_one_to_sixty_four_topics_unless_told_otherwise() {
    let some = |count: usize| (0..count).map(|n| Topic::new(n.to_string()).unwrap());
    assert_eq!(Topics::new([]), Err(TopicsError::None));
    assert_eq!(Topics::new(some(64)).unwrap().len(), 64);
    assert_eq!(Topics::new(some(65)), Err(TopicsError::TooMany { limit: 64 }));
    assert_eq!(Topics::new(some(64).chain(some(64))).unwrap().len(), 64, "repeated ones count once");
    assert_eq!(Topics::with_limit(some(3), 2), Err(TopicsError::TooMany { limit: 2 }));
    // Without end: the limit bounds the work.
    assert!(Topics::new((0..).map(|n: u64| Topic::new(n.to_string()).unwrap())).is_err());
}

proptest! {
    #[test]
    fn scoped_topics_are_equal_only_if_both_parts_are(a in "[a/:|. %]{1,3}", b in "[a/:|. %]{1,3}", c in "[a/:|. %]{1,3}", d in "[a/:|. %]{1,3}") {
        let (one, other) = (Topic::scoped(&a, &b).unwrap(), Topic::scoped(&c, &d).unwrap());
        prop_assert_eq!(one == other, (&a, &b) == (&c, &d));
        prop_assert_ne!(&one, &Topic::new(format!("{a}{b}")).unwrap());
        prop_assert_eq!((one.tenant(), one.name()), (Some(a.as_str()), b.as_str()));
        prop_assert_eq!(Topic::from_key(one.as_key()).unwrap(), one);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Topic::from_key(&text);
        if let Ok(topic) = Topic::new(&text) {
            prop_assert_eq!(topic.name(), text.as_str());
            prop_assert_eq!(topic.tenant(), None);
        }
    }
}
