//! Why a model was not loaded is told until it is.

use super::*;

impl World {
    fn refused(&self, model: &str) -> Option<String> {
        self.books.residence(&id(model), self.now).refused
    }
}

#[test]
fn a_refused_load_is_told_until_one_is_let_in() {
    let mut world = World::new(250, &["a", "b"]);
    assert_eq!((world.refused("a"), world.books.refusal(&id("a"))), (None, None));
    let failure = world.ask_with("a", 256, None).unwrap_err();
    let brief = world.refused("a").unwrap();
    assert!(brief.starts_with("needs ") && brief.ends_with("of 250 MiB are free"), "{brief}");
    assert_eq!(world.books.refusal(&id("a")), Some(failure.message));
    assert_eq!(world.refused("b"), None);
    let limits = MemoryLimits { budget: Some(5000 * MIB), ..world.books.limits.clone() };
    world.books.set_limits(limits);
    assert!(world.refused("a").is_some(), "nobody has asked for it since");
    world.ask("a", 256);
    world.settle();
    assert_eq!(world.refused("a"), None);
    // A request that is refused for its length is no refused load.
    assert_eq!(world.ask_with("a", 1 << 20, None).unwrap_err().code, "insufficient_memory");
    assert_eq!((world.refused("a"), world.books.refusal(&id("a"))), (None, None));
}

#[test]
fn an_admins_start_that_waited_too_long_says_what_for() {
    let mut world = World::with(&["a", "b"], |limits| {
        limits.budget = Some(room_for_one() * MIB);
        limits.waiting_timeout = 30 * S;
    });
    world.ask("a", 256);
    world.settle();
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let acts = world.books.ask(&id("b"), Turn::Start(reply), world.now).unwrap();
    world.perform(acts);
    world.pass_time(31 * S);
    assert_eq!(answer.try_recv().unwrap().unwrap_err().code, "memory_full");
    let brief = world.refused("b").unwrap();
    assert!(brief.starts_with("needs ") && brief.contains("are free"), "{brief}");
    assert!(world.books.refusal(&id("b")).unwrap().contains("a holds"));
}
