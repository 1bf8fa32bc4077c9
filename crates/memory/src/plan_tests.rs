use super::*;
use proptest::prelude::*;

const S: Duration = Duration::from_secs(1);

fn resident(name: &str, bytes: u64, idle_s: u32) -> Resident {
    Resident {
        name: name.into(),
        bytes,
        busy: false,
        pinned: false,
        loaded_for: 1000 * S,
        idle_for: idle_s * S,
        load_cost: S,
    }
}

fn rules(budget: u64, residents: &[Resident]) -> Rules {
    let held: u64 = residents.iter().map(|resident| resident.bytes).sum();
    Rules {
        budget,
        free: budget.saturating_sub(held),
        elsewhere: 0,
        residence_min: 10 * S,
        loaded_max: 8,
    }
}

fn want(name: &str, bytes: u64) -> Wanted {
    Wanted { name: name.into(), bytes }
}

#[test]
fn the_least_recently_used_goes_first_and_no_more_than_needed() {
    let residents = [resident("a", 10, 30), resident("b", 10, 90), resident("c", 10, 60)];
    let rules = rules(40, &residents);
    let plan = |bytes| plan(&rules, &residents, &want("new", bytes));
    assert_eq!(plan(10), Plan::Fits);
    assert_eq!(plan(11), Plan::Evict(vec!["b".into()]));
    assert_eq!(plan(21), Plan::Evict(vec!["b".into(), "c".into()]));
    assert_eq!(plan(40), Plan::Evict(vec!["b".into(), "c".into(), "a".into()]));
    assert!(matches!(plan(41), Plan::Never(_)));
}

#[test]
fn a_small_one_is_spared_when_a_larger_one_is_enough() {
    let residents = [resident("small", 2, 90), resident("large", 20, 30)];
    let rules = rules(24, &residents);
    assert_eq!(plan(&rules, &residents, &want("new", 20)), Plan::Evict(vec!["large".into()]));
}

#[test]
fn what_is_dear_to_load_stays_longer() {
    let dear = Resident { load_cost: 99 * S, ..resident("dear", 10, 100) };
    let residents = [dear, resident("cheap", 10, 50)];
    let rules = rules(20, &residents);
    assert_eq!(plan(&rules, &residents, &want("new", 10)), Plan::Evict(vec!["cheap".into()]));
}

#[test]
fn nobody_busy_pinned_or_just_loaded_goes() {
    let busy = Resident { busy: true, ..resident("busy", 10, 0) };
    let pinned = Resident { pinned: true, ..resident("pinned", 10, 500) };
    let young = Resident { loaded_for: 4 * S, ..resident("young", 10, 4) };
    let residents = [busy, pinned, young];
    let rules = rules(30, &residents);
    let Plan::Wait(why) = plan(&rules, &residents, &want("new", 15)) else { panic!("a wait") };
    let stays: Vec<Stays> = why.held_by.iter().map(|(_, _, stays)| *stays).collect();
    assert_eq!(stays, [Stays::Busy, Stays::Pinned, Stays::Young(6 * S)]);
    assert_eq!((why.needs, why.free, why.budget), (15, 0, 30));
    // Beside what is pinned it can never fit.
    assert!(matches!(plan(&rules, &residents, &want("new", 21)), Plan::Never(_)));
}

#[test]
fn places_are_limited_too() {
    let residents = [resident("a", 1, 5), resident("b", 1, 9)];
    let rules = Rules { loaded_max: 2, ..rules(100, &residents) };
    assert_eq!(plan(&rules, &residents, &want("c", 1)), Plan::Evict(vec!["b".into()]));
    // One that is there needs no place.
    assert_eq!(plan(&rules, &residents, &want("a", 50)), Plan::Fits);
    let busy: Vec<_> = residents.iter().cloned().map(|r| Resident { busy: true, ..r }).collect();
    let Plan::Wait(why) = plan(&rules, &busy, &want("c", 1)) else { panic!("a wait") };
    assert!(why.places);
    let Plan::Evict(gone) = plan(&Rules { loaded_max: 1, ..rules }, &residents, &want("c", 1))
    else {
        panic!("an eviction")
    };
    assert_eq!(gone.len(), 2);
}

fn some_resident() -> impl Strategy<Value = Resident> {
    (0u64..60, any::<bool>(), proptest::bool::weighted(0.2), 0u32..40, 0u32..40, 0u32..20).prop_map(
        |(bytes, busy, pinned, loaded, idle, cost)| Resident {
            name: String::new(),
            bytes,
            busy,
            pinned,
            loaded_for: loaded * S,
            idle_for: idle.min(loaded) * S,
            load_cost: cost * S,
        },
    )
}

proptest! {
    #[test]
    fn plans_keep_the_rules(
        residents in proptest::collection::vec(some_resident(), 0..7),
        bytes in 0u64..160,
        slack in 0u64..60,
        outside in 0u64..30,
        loaded_max in 1usize..8,
        own in any::<bool>(),
    ) {
        let mut residents = residents;
        for (number, resident) in residents.iter_mut().enumerate() {
            resident.name = format!("m{number}");
        }
        let held: u64 = residents.iter().map(|resident| resident.bytes).sum();
        let budget = held + slack;
        let rules = Rules {
            budget,
            free: slack.saturating_sub(outside),
            elsewhere: outside.min(slack),
            residence_min: 10 * S,
            loaded_max,
        };
        let name = if own { "m0" } else { "new" };
        let wanted = want(name, bytes);
        let is_new = !residents.iter().any(|resident| resident.name == name);
        let may_go = |resident: &&Resident| {
            resident.name != name && !resident.busy && !resident.pinned
                && resident.loaded_for >= rules.residence_min
        };
        let could_be_free: u64 =
            rules.free + residents.iter().filter(may_go).map(|r| r.bytes).sum::<u64>();
        let left_at_least = residents.len() - residents.iter().filter(may_go).count();
        let places_possible = !is_new || left_at_least < loaded_max;
        match plan(&rules, &residents, &wanted) {
            Plan::Fits => {
                prop_assert!(bytes <= rules.free);
                prop_assert!(!is_new || residents.len() < loaded_max);
            }
            Plan::Evict(gone) => {
                prop_assert!(!gone.is_empty());
                let gone: Vec<&Resident> = gone
                    .iter()
                    .map(|name| residents.iter().find(|r| r.name == *name).unwrap())
                    .collect();
                prop_assert!(gone.iter().all(may_go));
                let freed: u64 = gone.iter().map(|resident| resident.bytes).sum();
                prop_assert!(rules.free + freed >= bytes);
                prop_assert!(!is_new || residents.len() - gone.len() < loaded_max);
                // Nobody goes for nothing.
                for resident in &gone {
                    let enough = rules.free + freed - resident.bytes >= bytes;
                    let placed = !is_new || residents.len() - gone.len() + 1 < loaded_max;
                    prop_assert!(!(enough && placed), "{} goes for nothing", resident.name);
                }
            }
            Plan::Wait(_) => {
                // Nothing that may be done would be enough.
                prop_assert!(could_be_free < bytes || !places_possible);
            }
            Plan::Never(why) => {
                let own: u64 =
                    residents.iter().filter(|r| r.name == name).map(|r| r.bytes).sum();
                let pinned: Vec<_> =
                    residents.iter().filter(|r| r.pinned && r.name != name).collect();
                let pinned_bytes: u64 = pinned.iter().map(|r| r.bytes).sum();
                prop_assert!(bytes + own + pinned_bytes > budget
                    || (is_new && pinned.len() >= loaded_max));
                prop_assert_eq!(why.needs, bytes);
            }
        }
    }

    /// Two models that do not fit together, asked for in turn: neither goes before its time.
    #[test]
    fn no_thrash(times in proptest::collection::vec(0u32..25, 1..60)) {
        let mut now = 0u32;
        let mut loaded: Option<(&str, u32)> = None;
        for (turn, pause) in times.into_iter().enumerate() {
            now += pause;
            let name = if turn % 2 == 0 { "a" } else { "b" };
            let residents: Vec<Resident> = loaded
                .iter()
                .map(|(name, at)| Resident {
                    loaded_for: (now - at) * S,
                    idle_for: (now - at) * S,
                    ..resident(name, 60, 0)
                })
                .collect();
            if loaded.is_some_and(|(there, _)| there == name) {
                continue;
            }
            match plan(&rules(100, &residents), &residents, &want(name, 60)) {
                Plan::Fits => loaded = Some((name, now)),
                Plan::Evict(gone) => {
                    let (there, at) = loaded.unwrap();
                    prop_assert_eq!(gone, vec![there.to_owned()]);
                    prop_assert!(now - at >= 10);
                    loaded = Some((name, now));
                }
                Plan::Wait(_) => prop_assert!(loaded.is_some_and(|(_, at)| now - at < 10)),
                Plan::Never(_) => prop_assert!(false, "it fits alone"),
            }
        }
    }
}
