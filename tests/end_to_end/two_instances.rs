//! Two instances beside each other know nothing of one another.

use crate::fixture::{MODEL, Scripted, chat, said};
use mlxd_testkit::{Script, until};
use serde_json::json;

const CHAT: &str = "/v1/chat/completions";

#[test]
fn each_has_its_own_worker_and_outlives_the_other() {
    let script = |answer: &str| Script { answer: Some(answer.into()), ..Script::default() };
    let one = Scripted::start(&script("one"));
    let two = Scripted::start(&script("two"));
    assert_ne!(one.front.base_url(), two.front.base_url());
    let ask = |scripted: &Scripted| {
        let answer = scripted.front.client().post(CHAT, &chat(MODEL, "who?", json!({})));
        said(&answer.json()).to_owned()
    };
    assert_eq!((ask(&one).as_str(), ask(&two).as_str()), ("one", "two"));
    let (first, second) = (one.front.workers(), two.front.workers());
    assert!(first.len() == 1 && second.len() == 1 && first != second, "{first:?} {second:?}");

    let home = one.front.kill();
    until("the first one's worker to be gone", || {
        mlxd_testkit::Leftovers::of(home.path()).processes.is_empty().then_some(())
    });
    assert_eq!(two.front.workers(), second);
    assert_eq!(ask(&two), "two");
}
