//! The bytes of the wire: one golden test for each rule, named after it, and a round trip through a decoder that is not
//! ours.

use bytes::Bytes;
use eventsource_stream::Eventsource;
use futures_util::{StreamExt, stream};
use proptest::prelude::*;
use std::{convert::Infallible, time::Duration};
use tidings::{Event, EventId, EventType, KeepAlive};

const UPDATE: EventType = EventType::from_static("update");

fn wire(event: Event) -> String {
    String::from_utf8(event.encode(None).to_vec()).unwrap()
}

fn wire_with_id(event: Event, id: &str) -> String {
    String::from_utf8(event.encode(Some(&EventId::new(id).unwrap())).to_vec()).unwrap()
}

#[test]
fn lines_end_in_lf() {
    let event = Event::new().event_type(UPDATE).retry(Duration::from_secs(1)).comment("c").data("a\r\nb\rc\nd");
    assert!(!wire_with_id(event, "1").contains('\r'));
}

#[test]
fn crlf_lf_and_cr_in_data_are_each_one_line_break() {
    assert_eq!(wire(Event::new().data("a\r\nb")), "data: a\ndata: b\n\n");
    assert_eq!(wire(Event::new().data("a\nb")), "data: a\ndata: b\n\n");
    assert_eq!(wire(Event::new().data("a\rb")), "data: a\ndata: b\n\n");
    assert_eq!(wire(Event::new().data("a\n\rb")), "data: a\ndata:\ndata: b\n\n");
    assert_eq!(wire(Event::new().data("a\r\r\nb")), "data: a\ndata:\ndata: b\n\n");
    assert_eq!(wire(Event::new().data("a\r\n\nb")), "data: a\ndata:\ndata: b\n\n");
}

#[test]
fn a_trailing_break_is_kept() {
    assert_eq!(wire(Event::new().data("a\n")), "data: a\ndata:\n\n");
    assert_eq!(wire(Event::new().data("a\r\n")), "data: a\ndata:\n\n");
    assert_eq!(wire(Event::new().data("\n")), "data:\ndata:\n\n");
}

#[test]
fn a_leading_break_is_kept() {
    assert_eq!(wire(Event::new().data("\na")), "data:\ndata: a\n\n");
}

#[test]
fn empty_data_is_written_and_dispatches() {
    assert_eq!(wire(Event::new().data("")), "data:\n\n");
}

#[test]
fn data_that_was_not_set_dispatches_nothing() {
    assert_eq!(wire(Event::new()), "");
    assert_eq!(wire(Event::new().event_type(UPDATE)), "event: update\n\n");
    assert_eq!(wire_with_id(Event::new(), "7"), "id: 7\n\n");
}

#[test]
fn one_space_follows_every_colon_that_has_a_value() {
    let event = Event::new().event_type(UPDATE).retry(Duration::from_millis(5)).comment("c").data("d");
    assert_eq!(wire_with_id(event, "i"), ": c\nevent: update\nretry: 5\ndata: d\nid: i\n\n");
}

#[test]
fn a_leading_space_in_a_value_survives() {
    assert_eq!(wire(Event::new().data(" a")), "data:  a\n\n");
    assert_eq!(wire(Event::new().event_type(EventType::new(" t").unwrap()).data("")), "event:  t\ndata:\n\n");
}

#[test]
fn the_id_is_last() {
    assert_eq!(wire_with_id(Event::new().event_type(UPDATE).data("x"), "9"), "event: update\ndata: x\nid: 9\n\n");
}

#[test]
fn the_order_in_which_fields_are_set_does_not_matter() {
    let one = Event::new().data("x").event_type(UPDATE).retry(Duration::from_secs(2));
    let other = Event::new().retry(Duration::from_secs(2)).event_type(UPDATE).data("x");
    assert_eq!(wire(one), wire(other));
}

#[test]
fn a_field_that_is_set_twice_keeps_the_last_value() {
    assert_eq!(wire(Event::new().data("a\nb").data("c")), "data: c\n\n");
}

#[test]
fn an_event_type_longer_than_the_room_kept_for_it_is_written_whole() {
    let long = "t".repeat(500);
    let event = Event::new().event_type(EventType::new(&long).unwrap()).data("x");
    assert_eq!(wire(event), format!("event: {long}\ndata: x\n\n"));
}

#[test]
fn an_event_type_has_no_cr_and_no_lf_and_is_not_empty() {
    for bad in ["a\nb", "a\rb", "\n", "a\r\n", ""] {
        assert!(EventType::new(bad).is_err(), "{bad:?}");
    }
    assert!(EventType::new("a\0b").is_ok(), "NUL is allowed in a type");
}

#[test]
fn an_id_has_no_cr_no_lf_and_no_nul() {
    for bad in ["a\nb", "a\rb", "a\0b", "\0"] {
        assert!(EventId::new(bad).is_err(), "{bad:?}");
    }
    assert!(EventId::new("").is_ok(), "the empty id resets the last event id");
    assert_eq!(wire_with_id(Event::new().data("x"), ""), "data: x\nid:\n\n");
}

#[test]
fn an_id_of_any_length_is_written_whole() {
    for len in 0..100 {
        let text = "é".repeat(len);
        let id = EventId::new(&text).unwrap();
        assert_eq!(id.as_str(), text);
        assert_eq!(id.clone(), id);
        assert!(
            wire_with_id(Event::new().data("x"), &text)
                .ends_with(&format!("id:{}{text}\n\n", if len > 0 { " " } else { "" }))
        );
    }
    assert_eq!(EventId::from(u64::MAX).as_str(), u64::MAX.to_string());
    assert_eq!(EventId::from_static("7"), EventId::from(7));
}

#[test]
fn an_event_of_any_length_is_written_whole() {
    for len in (0..5000).step_by(7) {
        let text = "x".repeat(len);
        let data = if len > 0 { format!("data: {text}") } else { "data:".to_owned() };
        assert_eq!(wire_with_id(Event::new().data(&text), "1"), format!("{data}\nid: 1\n\n"));
        assert_eq!(wire(Event::new().data(&text)), format!("{data}\n\n"));
    }
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    assert_eq!(
        EventId::new("ab\0").unwrap_err().to_string(),
        "a NUL at byte 2 of the event id: it would end or void the field on the wire"
    );
    assert!(EventType::new("").unwrap_err().to_string().contains("leave the type out"));
}

#[test]
fn a_comment_may_have_line_breaks() {
    assert_eq!(wire(Event::new().comment("a\r\nb\n").data("")), ": a\n: b\n:\ndata:\n\n");
}

#[test]
fn a_comment_alone_has_no_blank_line() {
    assert_eq!(wire(Event::new().comment("hello")), ": hello\n");
}

#[test]
fn retry_is_whole_milliseconds() {
    assert_eq!(wire(Event::new().retry(Duration::from_micros(1_999))), "retry: 1\n\n");
    assert_eq!(wire(Event::new().retry(Duration::from_secs(3))), "retry: 3000\n\n");
    assert_eq!(wire(Event::new().retry(Duration::MAX)), format!("retry: {}\n\n", u64::MAX));
}

#[test]
fn a_heartbeat_is_a_colon_and_one_lf() {
    let frame = heartbeat(KeepAlive::new());
    assert_eq!(frame, ":\n");
}

#[test]
fn a_heartbeat_may_be_a_comment_with_text() {
    assert_eq!(heartbeat(KeepAlive::new().comment("still here")), ": still here\n");
}

#[test]
fn a_named_heartbeat_carries_its_interval() {
    let named = KeepAlive::new().event(EventType::from_static("ping")).interval(Duration::from_millis(250));
    assert_eq!(heartbeat(named), "event: ping\ndata: 250\n\n");
    assert_eq!(heartbeat(KeepAlive::new().event_with(UPDATE, "x\ny")), "event: update\ndata: x\ndata: y\n\n");
}

/// The first heartbeat of a stream that never says anything.
fn heartbeat(keep_alive: KeepAlive) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let stream = tidings::KeepAliveStream::new(stream::pending::<()>(), keep_alive);
        match std::pin::pin!(stream).next().await {
            Some(tidings::Beat::Heartbeat(frame)) => String::from_utf8(frame.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn no_bom_is_written() {
    assert!(!wire(Event::new().data("\u{feff}x")).starts_with('\u{feff}'));
}

#[cfg(feature = "json")]
#[test]
fn json_is_one_line_and_its_line_breaks_are_escaped() {
    let event = Event::new().json(&serde_json::json!({"a": "x\ny", "b": [1, 2]})).unwrap();
    assert_eq!(wire(event), "data: {\"a\":\"x\\ny\",\"b\":[1,2]}\n\n");
}

#[cfg(feature = "json")]
#[test]
fn json_with_raw_line_breaks_keeps_its_lines() {
    let raw: Box<serde_json::value::RawValue> = serde_json::from_str("{\n \"a\": 1\r\n}").unwrap();
    assert_eq!(wire(Event::new().json(&raw).unwrap()), "data: {\ndata:  \"a\": 1\ndata: }\n\n");
}

#[cfg(feature = "json")]
#[test]
fn a_value_that_is_no_json_is_an_error() {
    let bad = std::collections::BTreeMap::from([((1, 2), 3)]);
    let error = Event::new().json(&bad).unwrap_err();
    assert!(error.to_string().contains("cannot be written as JSON"), "{error}");
}

#[test]
fn debug_shows_structure_and_no_payload() {
    let debug = format!("{:?}", Event::new().event_type(UPDATE).data("secret"));
    assert!(debug.contains("update") && !debug.contains("secret"), "{debug}");
}

/// What a client reads back for a text.
fn normalized(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Texts in which line ends, spaces, colons and field names meet more often than chance would have it.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => any::<String>(),
        3 => prop::sample::select(vec!["\n", "\r", "\r\n", " ", ":", "\0", "\u{feff}", "\u{2028}", "\u{85}", "data: x", "id: 1", "event: e", ""])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// 5,000 unless `PROPTEST_CASES` says otherwise.
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases: 5_000, ..config } }
}

proptest! {
    #![proptest_config(cases())]

    /// Whatever is given comes back, however the bytes are cut on the way.
    #[test]
    fn a_foreign_decoder_reads_back_what_was_given(
        events in prop::collection::vec((any_text(), prop::option::of(any_text()), prop::option::of(any_text()), prop::option::of(any_text())), 1..5),
        cut in 1usize..20,
    ) {
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        let mut last_id = String::new();
        for (data, event_type, id, comment) in &events {
            let event_type = event_type.as_ref().and_then(|text| EventType::new(text).ok());
            let id = id.as_ref().and_then(|text| EventId::new(text).ok());
            let mut event = Event::new().data(data);
            if let Some(event_type) = &event_type {
                event = event.event_type(event_type.clone());
            }
            if let Some(comment) = comment {
                event = event.comment(comment);
            }
            if let Some(id) = &id {
                last_id = id.to_string();
            }
            bytes.extend_from_slice(&event.encode(id.as_ref()));
            let event_type = event_type.map_or("message".to_owned(), |event_type| event_type.to_string());
            expected.push((event_type, normalized(data), last_id.clone()));
        }
        let chunks: Vec<_> = bytes.chunks(cut).map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk))).collect();
        let decoded: Vec<_> = futures_util::FutureExt::now_or_never(
            stream::iter(chunks).eventsource().map(|event| event.unwrap()).map(|e| (e.event, e.data, e.id)).collect(),
        ).unwrap();
        prop_assert_eq!(decoded, expected);
    }

    /// What a subscription's reader in the same process sees is what a client sees.
    #[test]
    fn a_record_reads_back_what_was_given(data in any_text(), event_type in any_text()) {
        let event_type = EventType::new(event_type).ok();
        let mut event = Event::new().data(&data).comment("data: no");
        if let Some(event_type) = &event_type {
            event = event.event_type(event_type.clone());
        }
        let record = tidings::replay::Record::new(tidings::Topic::new("t").unwrap(), event);
        prop_assert_eq!(record.data().unwrap(), normalized(&data));
        prop_assert_eq!(record.event_type(), event_type.as_ref().map(EventType::as_str));
        let stored = tidings::replay::Record::from_stored(record.topic().clone(), record.kind(), record.body(), record.time());
        prop_assert!(stored.is_ok());
    }
}
