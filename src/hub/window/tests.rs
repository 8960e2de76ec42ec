//! What only the window itself can show.

use super::*;
use crate::{
    Event,
    replay::{Record, Ring},
};
use std::time::Duration;

#[test]
fn only_who_has_everything_is_moved_to_the_end() {
    let limits = Ring::new().limits();
    let run = Run::new_log();
    let window = Window::new(run.at(0), limits, TopicLife { explicit: false, idle: Duration::ZERO });
    let topic = Topic::from_static("t");
    let publish = |topic, position| {
        let entry = Arc::new(Entry::new(run.at(position), Record::new(topic, Event::new())));
        window.publish([entry]);
    };
    publish(topic.clone(), 1);
    let (attached, mut cursor) = window.attach(&(&topic).into());
    publish(topic, 2);
    assert_eq!((window.settle(&attached, &mut cursor), cursor), (Standing::Behind, run.at(1)));
    cursor = run.at(2);
    publish(Topic::from_static("other"), 3);
    assert_eq!((window.settle(&attached, &mut cursor), cursor), (Standing::Level, run.at(3)));
    window.detach(&attached);
}
