//! Why a model was not loaded is told until it is.

use super::*;
use mlxd_protocol::bytes_in_short;

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
    assert!(brief.starts_with("needs ") && brief.ends_with("of 262 MB are free"), "{brief}");
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

#[test]
fn a_requests_own_deadline_holds_while_it_waits_for_memory() {
    let mut world = World::new(room_for_one(), &["a", "b"]);
    world.ask("a", 256);
    world.settle();
    let patient = world.ask("b", 256);
    let mut journal = world.journal("b", 256, None);
    let hasty = Arc::get_mut(&mut journal).unwrap();
    hasty.job.deadline = Some(3 * S);
    let hasty = hasty.request;
    let acts = world.books.ask(&id("b"), Turn::Sequence(journal), world.now).unwrap();
    world.perform(acts);
    assert!(world.books.waits(&id("b"), hasty));
    world.pass_time(2 * S);
    assert!(world.failed.is_empty());
    world.pass_time(2 * S);
    let [(request, failure)] = &world.failed[..] else { panic!("{:?}", world.failed) };
    assert_eq!((*request, failure.code), (hasty.0, "deadline_exceeded"));
    let message = &failure.message;
    assert!(message.contains("3000 ms") && message.contains("a holds"), "{message}");
    assert!(!world.books.waits(&id("b"), hasty) && world.waiting("b") == 1);
    assert!(world.books.waits(&id("b"), RequestId(patient)));
}

#[test]
fn what_is_short_is_named_and_what_to_do_about_it() {
    let mut world = World::with(&["a", "b"], |limits| limits.loaded_max = 1);
    world.ask("a", 256);
    world.settle();
    world.pin("a", true);
    let failure = world.ask_with("b", 256, None).unwrap_err();
    let message = &failure.message;
    assert!(
        message.contains("1 models are loaded, which is all that max_loaded lets: a holds"),
        "{message}"
    );
    assert!(message.ends_with("unpin one, or raise max_loaded under [memory]"), "{message}");
    // Of a loaded model it is what is lacking, beside what is there.
    let mut world = World::new(room_for_one(), &["a"]);
    world.ask("a", 256);
    world.settle();
    let message = world.ask_with("a", 1 << 20, None).unwrap_err().message;
    let has = format!(
        " besides the {} that it has for being loaded, ",
        bytes_in_short(world.base() * MIB)
    );
    assert!(message.contains(&has), "{message}, not {has}");
}

/// A worker that ran a long prompt once keeps its buffers; the next one has none.
#[test]
fn what_a_long_prompt_left_is_no_reason_for_never() {
    let mut world = World::new(room_for_one(), &["a"]);
    let rested = |world: &World| world.books.accounts[&id("a")].measured.resting_bytes;
    let rest = |world: &mut World, mib: u64| {
        let account = world.books.accounts.get_mut(&id("a")).unwrap();
        account.measured.resting_bytes = Some(mib * MIB);
    };
    rest(&mut world, 2 * room_for_one());
    assert!(world.books.accounts[&id("a")].promise().base_bytes() > room_for_one() * MIB);
    // One that does not fit by the formula either is refused, and nothing is forgotten.
    assert_eq!(world.ask_with("a", 1 << 20, None).unwrap_err().code, "insufficient_memory");
    assert_eq!(rested(&world), Some(2 * room_for_one() * MIB));
    let load = mlxd_memory::Load { context: 256, batch: 1 };
    let estimate = world.books.estimate(&id("a"), load, world.now).unwrap();
    assert_eq!(estimate.verdict, mlxd_protocol::admin::Verdict::Fits, "{}", estimate.message);
    let request = world.ask("a", 256);
    world.settle();
    assert!(world.runs(request) && rested(&world).is_none());
    assert_eq!(world.base(), world.books.accounts[&id("a")].promise().base_bytes() / MIB);
}

#[test]
fn a_process_without_a_promise_is_refused_with_the_numbers() {
    let mut world = World::new(100, &["a"]);
    let refused = world.books.may_spawn(&id("a"), None).unwrap_err();
    assert_eq!(
        refused,
        format!("it needs {}, and 105 MB of 105 MB are free", bytes_in_short(world.base() * MIB))
    );
}
