//! Limits that change while models are there.

use super::*;

impl World {
    fn limit(&mut self, change: impl FnOnce(&mut MemoryLimits)) {
        let mut limits = self.books.limits.clone();
        change(&mut limits);
        self.books.set_limits(limits);
    }

    /// Loads the models one after the other, a second apart; gives their sequences.
    fn load(&mut self, names: &[&str]) -> Vec<u64> {
        let asked = names.iter().map(|name| {
            let request = self.ask(name, 256);
            self.settle();
            self.pass_time(S);
            request
        });
        asked.collect()
    }

    fn look_and_settle(&mut self) {
        self.look(Look::default());
        self.settle();
    }
}

#[test]
fn a_smaller_budget_unloads_the_idle_and_never_the_busy_or_pinned() {
    let names = ["busy", "first", "pinned", "second"];
    let mut world = World::new(5000, &names);
    let requests = world.load(&names);
    world.pin("pinned", true);
    requests[1..].iter().for_each(|request| world.end(*request));
    let of_all = world.books.ledger.promised();
    world.limit(|limits| limits.budget = Some(of_all));
    world.look_and_settle();
    assert_eq!(world.loaded(), names, "it is enough");
    world.limit(|limits| limits.budget = Some(of_all - 1));
    assert!(world.unloading.is_empty(), "at the next look");
    world.look_and_settle();
    assert_eq!(world.loaded(), ["busy", "pinned", "second"], "the least recently used");
    world.limit(|limits| limits.budget = Some(MIB));
    world.look_and_settle();
    assert_eq!(world.loaded(), ["busy", "pinned"]);
    assert!(world.runs(requests[0]) && world.ask_with("first", 256, None).is_err());
    world.pass_time(60 * S);
    assert_eq!(world.loaded(), ["busy", "pinned"]);
    // Who was busy goes once it is not.
    world.end(requests[0]);
    world.look_and_settle();
    assert_eq!(world.loaded(), ["pinned"]);
    // More again: all of them are let in, and nobody goes.
    world.limit(|limits| limits.budget = Some(5000 * MIB));
    world.load(&["busy", "first", "second"]);
    world.look_and_settle();
    assert_eq!(world.loaded(), names);
}

#[test]
fn what_a_worker_takes_beyond_the_budget_unloads_nobody() {
    let mut world = World::new(room_for_one(), &["a"]);
    let request = world.load(&["a"])[0];
    world.end(request);
    world.look_at(101, 2 * room_for_one(), 2 * room_for_one());
    assert!(world.books.ledger.promised() > world.books.ledger.budget());
    world.limit(|limits| limits.waiting_max = 1);
    world.look_and_settle();
    assert_eq!(world.loaded(), ["a"], "only smaller limits do");
}

#[test]
fn fewer_places_unload_the_least_recently_used() {
    let names = ["a", "b", "c"];
    let mut world = World::new(5000, &names);
    world.load(&names).into_iter().for_each(|request| world.end(request));
    world.limit(|limits| limits.loaded_max = 2);
    world.look_and_settle();
    assert_eq!(world.loaded(), ["b", "c"]);
    world.limit(|limits| limits.loaded_max = 3);
    world.load(&["a"]);
    assert_eq!(world.loaded(), names);
}

#[test]
fn times_and_places_in_the_queue_are_those_of_now() {
    let mut world = World::with(&["a", "b"], |limits| {
        limits.budget = Some(room_for_one() * MIB);
        limits.residence_min = 1000 * S;
    });
    let first = world.load(&["a"])[0];
    world.end(first);
    let waits = world.ask("b", 256);
    world.pass_time(100 * S);
    assert!(world.unloading.is_empty(), "a stays for its residence_min");
    world.limit(|limits| (limits.residence_min, limits.waiting_max) = (Duration::ZERO, 1));
    assert_eq!(world.ask_with("b", 256, None).unwrap_err().code, "memory_full");
    world.look_and_settle();
    assert!(world.runs(waits));
    // What the machine keeps back counts as well, where no budget is said.
    world.look(Look { memory: Some(memory(4096)), ..Look::default() });
    let total = memory(4096).total;
    world.limit(|limits| (limits.budget, limits.reserve) = (None, Some(total / 4)));
    assert_eq!(world.books.ledger.budget(), memory(4096).working_set.min(total - total / 4));
    assert_eq!(world.books.status().reserve_bytes, total / 4);
}
