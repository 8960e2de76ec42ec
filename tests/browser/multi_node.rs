//! The example `multi_node`: a page that goes on at the other node when one is killed.

use crate::{
    driver::Browser,
    support::{
        example::{self, Example},
        redis::Redis,
    },
};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Page {
    /// What each node is said to be, and which the page follows.
    states: Vec<String>,
    followed: Option<usize>,
    received: usize,
    moves: usize,
    repeats: usize,
    gaps: usize,
    /// Who published what, and where the page got it, the oldest first.
    events: Vec<(String, String, String)>,
}

const PAGE: &str = "
    const number = (id) => Number(document.getElementById(id).textContent);
    const nodes = [...document.querySelectorAll('.node')];
    const followed = nodes.findIndex((node) => node.hasAttribute('data-followed'));
    return {
        states: nodes.map((node) => node.dataset.state),
        followed: followed < 0 ? null : followed,
        received: number('received'), moves: number('moves'), repeats: number('repeats'), gaps: number('gaps'),
        events: [...document.querySelectorAll('#events li[data-id]')].reverse().map((item) =>
            [item.querySelector('span').textContent, item.querySelector('pre').textContent, item.lastChild.textContent]),
    };";

#[tokio::test]
async fn a_page_goes_on_at_the_other_node_when_one_is_killed() {
    let redis = Redis::start().await;
    let demonstration = Example::start(&example::build("multi_node"), &["--redis", &redis.url()]).await;
    let browser = Browser::start().await;
    browser.open(&demonstration.url()).await;
    let until = async |wanted: &dyn Fn(&Page) -> bool| browser.until::<Page>(PAGE, wanted).await;
    until(&|page| page.states == ["up", "up"] && page.followed == Some(0)).await;
    // Once this has come, the page knows an id.
    browser.click(".node:nth-child(1) .one").await;
    until(&|page| page.received == 1).await;
    browser.click(".node:nth-child(2) .many").await;
    until(&|page| page.received == 101).await;

    // The other is published to while the page has not noticed yet, and after.
    browser.click(".node:nth-child(2) .many").await;
    browser.click(".node:nth-child(1) .kill").await;
    let page = until(&|page| page.received == 201 && page.states == ["down", "up"]).await;
    assert_eq!((page.followed, page.moves), (Some(1), 1));
    browser.click(".node:nth-child(2) .one").await;
    until(&|page| page.received == 202).await;

    // And back again.
    browser.click(".node:nth-child(1) .kill").await;
    until(&|page| page.states == ["up", "up"]).await;
    browser.click(".node:nth-child(1) .many").await;
    browser.click(".node:nth-child(2) .kill").await;
    let page = until(&|page| page.received == 302 && page.followed == Some(0)).await;
    assert_eq!((page.repeats, page.gaps), (0, 0));
    assert!(page.moves >= 2, "{page:?}");
    let texts: Vec<_> = page.events.iter().map(|(_, text, _)| text.clone()).collect();
    assert_eq!(texts, (1..=302).map(|n| format!("no. {n}")).collect::<Vec<_>>());
    let by = |name: &str| page.events.iter().filter(|(node, ..)| node == name).count();
    assert_eq!((by("one"), by("two")), (101, 201));
    assert!(page.events.iter().any(|(.., place)| place == "at two"));
}
