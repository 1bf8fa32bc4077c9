//! Random schedules of everything that can happen.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Move {
    Ask(usize, u32),
    End(usize),
    Cancel(usize),
    Settle,
    Die(usize),
    Wait(u32),
    Pin(usize, bool),
}

fn one_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        6 => (0usize..4, 1u32..5).prop_map(|(m, blocks)| Move::Ask(m, blocks * 256)),
        5 => any::<usize>().prop_map(Move::End),
        1 => any::<usize>().prop_map(Move::Cancel),
        3 => Just(Move::Settle),
        1 => (0usize..4).prop_map(Move::Die),
        3 => (0u32..15).prop_map(Move::Wait),
        1 => (0usize..4, any::<bool>()).prop_map(|(m, pin)| Move::Pin(m, pin)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever comes in whatever order: never more is promised than there is, whoever runs has
    /// his promise, and in the end everybody was served and all memory is back.
    #[test]
    fn random_schedules(moves in proptest::collection::vec(one_move(), 1..100), models in 1u64..4) {
        let names = ["a", "b", "c", "d"];
        let budget = World::new(1, &[]).base() * models + 12;
        let mut world = World::new(budget, &names);
        let mut asked = BTreeSet::new();
        for one in moves {
            match one {
                Move::Ask(model, tokens) => {
                    if let Ok(request) = world.ask_with(names[model], tokens, None) {
                        asked.insert(request);
                    }
                }
                Move::End(which) => {
                    let up: Vec<u64> = world.pumps.iter()
                        .filter(|(_, model)| world.workers.contains_key(model))
                        .map(|(request, _)| *request).collect();
                    if !up.is_empty() {
                        world.end(up[which % up.len()]);
                    }
                }
                Move::Cancel(which) => {
                    let waiting: Vec<u64> =
                        asked.iter().copied().filter(|r| !world.runs(*r)).collect();
                    if !waiting.is_empty() {
                        let request = waiting[which % waiting.len()];
                        for name in names {
                            let acts = world.books.cancel(&id(name), RequestId(request));
                            world.perform(acts);
                        }
                    }
                }
                Move::Settle => world.settle(),
                Move::Die(model) => {
                    let model = id(names[model]);
                    if !world.unloading.contains(&model) && world.workers.remove(&model).is_some() {
                        world.seen(&model, WorkerState::Backoff);
                        if !world.pumps.values().any(|m| *m == model) {
                            world.seen(&model, WorkerState::Stopped);
                        }
                    }
                }
                Move::Wait(seconds) => world.pass_time(seconds * S),
                Move::Pin(model, pin) => world.pin(names[model], pin),
            }
            prop_assert!(world.books.ledger.promised() <= world.books.ledger.budget());
            for model in world.pumps.values() {
                prop_assert!(world.books.ledger.held(model.as_str()).is_some());
            }
        }
        for name in names {
            world.books.accounts.get_mut(&id(name)).unwrap().pinned = None;
        }
        for _ in 0..1000 {
            world.pass_time(6 * S);
            world.settle();
            match world.pumps.keys().next().copied() {
                Some(request) => world.end(request),
                None => break,
            }
        }
        let waiting: usize = names.iter().map(|name| world.waiting(name)).sum();
        prop_assert_eq!(waiting, 0, "somebody waits for ever");
        let lifetime = Lifetime { ttl: Some(S), pinned: false };
        names.iter().for_each(|name| {
            world.books.register(&id(name), needs(200), lifetime, world.now);
        });
        world.pass_time(10 * S);
        world.settle();
        prop_assert_eq!(world.books.ledger.promised(), 0);
    }
}
