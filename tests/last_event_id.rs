//! Where the client says it left off: every value that a request can have, and its outcome.

use http::{HeaderValue, Request};
use tidings::LastEventId;

fn request(uri: &str, headers: &[&[u8]]) -> LastEventId {
    let mut request = Request::get(uri).body(()).unwrap();
    for header in headers {
        request.headers_mut().append("last-event-id", HeaderValue::from_bytes(header).unwrap());
    }
    LastEventId::from_parts(&request.into_parts().0)
}

#[test]
fn absent() {
    assert!(request("/events", &[]).is_absent());
    assert!(request("/events?x=1&y", &[]).is_absent());
    assert!(LastEventId::absent().is_absent());
}

#[test]
fn empty_is_absent() {
    assert!(request("/events", &[b""]).is_absent());
    assert!(request("/events?lastEventId=", &[]).is_absent());
    assert!(request("/events?lastEventId", &[]).is_absent());
}

#[test]
fn from_the_header() {
    assert_eq!(request("/events", &[b"17.0.z"]).as_str(), Some("17.0.z"));
}

#[test]
fn from_the_query_parameter() {
    assert_eq!(request("/events?a=b&lastEventId=17.0.z&c", &[]).as_str(), Some("17.0.z"));
    assert_eq!(request("/events?lastEventId=a%20b+c%C3%A9", &[]).as_str(), Some("a b cé"));
    assert_eq!(request("/events?last%45ventId=7", &[]).as_str(), Some("7"), "the name may be encoded, too");
    assert_eq!(request("/events?lastEventId=1&lastEventId=2", &[]).as_str(), Some("1"), "the first counts");
}

#[test]
fn the_header_wins_over_the_query_parameter() {
    assert_eq!(request("/events?lastEventId=old", &[b"new"]).as_str(), Some("new"));
    assert!(request("/events?lastEventId=old", &[b"\xff"]).is_invalid());
    assert_eq!(request("/events?lastEventId=old", &[b""]).as_str(), Some("old"), "an empty header says nothing");
}

#[test]
fn the_first_of_several_headers_counts() {
    assert_eq!(request("/events", &[b"1", b"2"]).as_str(), Some("1"));
}

#[test]
fn oversized_is_invalid() {
    let limit = "9".repeat(1024);
    assert_eq!(request("/events", &[limit.as_bytes()]).as_str(), Some(limit.as_str()));
    assert!(request("/events", &["9".repeat(1025).as_bytes()]).is_invalid());
    assert!(request(&format!("/events?lastEventId={}", "9".repeat(1025)), &[]).is_invalid());
}

#[test]
fn not_utf_8_is_invalid() {
    assert!(request("/events", &[b"\xc3\x28"]).is_invalid());
    assert!(request("/events?lastEventId=%ff", &[]).is_invalid());
}

#[test]
fn malformed_escapes_are_taken_as_they_are() {
    assert_eq!(request("/events?lastEventId=%zz%4", &[]).as_str(), Some("%zz%4"));
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn the_extractor_never_rejects() {
    use axum::extract::FromRequestParts;
    for (header, expected) in [(&b"1.0.a"[..], Some("1.0.a")), (b"\xff", None), (b"", None)] {
        let header = HeaderValue::from_bytes(header).unwrap();
        let (mut parts, ()) = Request::get("/").header("last-event-id", header).body(()).unwrap().into_parts();
        let last = LastEventId::from_request_parts(&mut parts, &()).await.unwrap();
        assert_eq!(last.as_str(), expected);
    }
}
