//! The conformance suite: it finds nothing in stores that keep the contract, and in each that breaks a rule, that rule.

#[path = "conformance/fault.rs"]
mod fault;
#[path = "conformance/faulty.rs"]
mod faulty;
#[path = "conformance/liberal.rs"]
mod liberal;
#[path = "conformance/mix.rs"]
mod mix;
#[path = "conformance/model.rs"]
mod model;
#[path = "conformance/repeat.rs"]
mod repeat;
#[path = "conformance/replace.rs"]
mod replace;
#[path = "conformance/shared.rs"]
mod shared;
#[path = "conformance/spoil.rs"]
mod spoil;
mod support;

use fault::Fault;
use faulty::Faulty;
use liberal::Liberal;
use model::{Disk, Model};
use support::nodes::{Log, Node};
use tidings::replay::{
    Ring,
    conformance::{Keep, Rule, Violation, check, check_nodes, check_reopen},
};

fn new_nodes() -> [Node; 2] {
    let log = Log::new();
    [log.node(), log.node()]
}

fn ring(keep: Keep) -> Ring {
    keep.events_per_topic.map_or_else(Ring::new, |events| Ring::new().events_per_topic(events))
}

async fn model() -> Result<(), Violation> {
    let disk = Disk::default();
    check(async |keep| Model::open(Disk::default(), keep)).await?;
    check_reopen(async |keep| Model::open(disk.clone(), keep)).await
}

async fn faulty(fault: Fault) -> Result<(), Violation> {
    let disk = Disk::default();
    check(async |keep| Faulty::open(Disk::default(), keep, fault)).await?;
    check_reopen(async |keep| Faulty::open(disk.clone(), keep, fault)).await?;
    check_nodes(async |_| shared::nodes(fault)).await
}

#[tokio::test]
async fn the_ring_passes_on_one_thread() -> Result<(), Violation> {
    check(async |keep| ring(keep)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_ring_passes_on_several_threads() -> Result<(), Violation> {
    check(async |keep| ring(keep)).await
}

#[tokio::test]
async fn the_ring_passes_with_bounds_of_bytes() -> Result<(), Violation> {
    // An event of the suite costs less than half of this.
    let bytes = |keep: Keep| keep.events_per_topic.map_or(usize::MAX, |events| events.max(1) * 1000);
    check(async |keep| Ring::new().bytes_per_topic(bytes(keep).min(4 << 20))).await?;
    check(async |keep| Ring::new().total_bytes(bytes(keep))).await
}

#[tokio::test]
async fn a_plain_store_passes_on_one_thread() -> Result<(), Violation> {
    model().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_plain_store_passes_on_several_threads() -> Result<(), Violation> {
    model().await
}

#[tokio::test]
async fn nodes_that_share_a_log_pass_on_one_thread() -> Result<(), Violation> {
    check(async |keep: Keep| keep.events_per_topic.map_or_else(Log::new, |_| Log::over(ring(keep))).node()).await?;
    check_nodes(async |_| new_nodes()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_share_a_log_pass_on_several_threads() -> Result<(), Violation> {
    check_nodes(async |_| new_nodes()).await
}

#[tokio::test]
async fn a_store_that_takes_every_liberty_passes() -> Result<(), Violation> {
    let disk = Disk::default();
    check(async |keep| Liberal::open(Disk::default(), keep)).await?;
    check_reopen(async |keep| Liberal::open(disk.clone(), keep)).await
}

// Time stands still but for those who wait: a store that never answers costs no time.
#[tokio::test(start_paused = true)]
async fn each_fault_is_found_and_named() {
    let mut wrong = Vec::new();
    for (fault, rule) in Fault::ALL {
        match faulty(*fault).await {
            Err(violation) if violation.rule() == *rule => {}
            Err(violation) => wrong.push(format!("{fault:?}: not {rule}, but {violation}")),
            Ok(()) => wrong.push(format!("{fault:?}: not found")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), Fault::ALL.len(), wrong.join("\n\n"));
}

#[test]
fn each_rule_has_a_fault() {
    let covered = |rule: &&Rule| Fault::ALL.iter().any(|(_, covered)| covered == *rule);
    let bare: Vec<_> = Rule::ALL.iter().filter(|rule| !covered(rule)).collect();
    assert!(bare.is_empty(), "{bare:?}");
}

#[tokio::test]
async fn a_violation_reads_well() {
    let violation = faulty(Fault::EvictionRaisesNoFloor).await.unwrap_err();
    let text = violation.to_string();
    for part in ["FloorCovers", violation.rule().text(), violation.doing(), violation.expected(), violation.found()] {
        assert!(text.contains(part), "{text}");
    }
    assert!(violation.doing().contains("eviction"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_violation_says_what_was_done_what_was_expected_and_what_was_found() {
    let cases = [
        (
            Fault::PageHasAHole,
            r#"positions: reading [Topic("a"), Topic("b")] from the earliest"#,
            "[1, 2, 3, 4, 5, 6, 7, 8] between 0 and 8",
            "[1, 3, 4, 5, 6, 7, 8], `through` at 8, floor 0",
        ),
        (
            Fault::MaxEventsIsIgnored,
            r#"where a page ends: reading [Topic("b")] from the earliest, up to 1 records"#,
            "at most 1 records",
            "7",
        ),
        (
            Fault::RefusesForNoReason,
            r#"positions: appending [Event to Topic("a"), Event to Topic("b"), Event to Topic("a")]"#,
            r#"a cursor for a record of Topic("b")"#,
            r#"Err(Other("why not"))"#,
        ),
        (Fault::NothingIsEvicted, "eviction", "some of 40 records removed", "all are held"),
    ];
    for (fault, doing, expected, found) in cases {
        let violation = faulty(fault).await.unwrap_err();
        assert_eq!((violation.doing(), violation.expected(), violation.found()), (doing, expected, found));
        assert_eq!(format!("{violation:?}"), violation.to_string());
    }
    let violation = faulty(Fault::StartIsForeign).await.unwrap_err();
    assert!(violation.expected().ends_with(" is not foreign"), "{violation}");
    let violation = faulty(Fault::KeyIsDropped).await.unwrap_err();
    let (expected, found) = (violation.expected(), violation.found());
    assert!(expected.starts_with("the key of what was appended at "), "{expected}");
    assert!(expected.contains("key Some("), "{expected}");
    assert!(found.contains("Event, \"data: ") && found.contains("key None"), "{found}");
}
