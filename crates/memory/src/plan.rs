//! The admission plan: what to do so that something fits. A pure function of what is known.

use std::time::Duration;

/// A model that is loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Resident {
    /// Its name.
    pub name: String,
    /// What unloading it gives back.
    pub bytes: u64,
    /// It has sequences.
    pub busy: bool,
    /// An admin wants it to stay.
    pub pinned: bool,
    /// How long it has been loaded.
    pub loaded_for: Duration,
    /// How long nobody has used it.
    pub idle_for: Duration,
    /// How long loading it takes.
    pub load_cost: Duration,
}

/// What is to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The model. When it is resident, `bytes` is what it wants besides.
    pub name: String,
    /// How many bytes are to be promised.
    pub bytes: u64,
}

/// What the plan keeps to.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Bytes that may be promised in all.
    pub budget: u64,
    /// Bytes that can be promised now: nobody holds them, and the machine has them.
    pub free: u64,
    /// Bytes of the budget that nobody holds and the machine has not: other programs take them.
    pub elsewhere: u64,
    /// A model that was loaded is left alone so long.
    pub residence_min: Duration,
    /// Models loaded at once.
    pub loaded_max: usize,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: it fits.
    Fits,
    /// Unload these, in this order; then it fits.
    Evict(Vec<String>),
    /// Nothing can be done now.
    Wait(Why),
    /// It can never fit.
    Never(Why),
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Why {
    /// What was wanted.
    pub needs: u64,
    /// What it has already, for being there.
    pub holds: u64,
    /// What can be promised now.
    pub free: u64,
    /// What there is in all.
    pub budget: u64,
    /// What of it other programs take.
    pub elsewhere: u64,
    /// Places for models are what is short, not bytes.
    pub places: bool,
    /// Who holds the rest, and why each stays.
    pub held_by: Vec<(String, u64, Stays)>,
}

/// Why a model is not unloaded for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It has sequences.
    Busy,
    /// It is pinned.
    Pinned,
    /// It was loaded so recently; so much longer it stays.
    Young(Duration),
    /// It could go, but that would not be enough.
    NotEnough,
}

/// Decides about `wanted`.
///
/// Unloaded are idle models that are neither pinned nor younger than the minimum residence, those
/// first whose idle time is longest for what loading them again would cost; and of those no more
/// than necessary.
pub fn plan(rules: &Rules, residents: &[Resident], wanted: &Wanted) -> Plan {
    let is_new = !residents.iter().any(|resident| resident.name == wanted.name);
    let others = || residents.iter().filter(|resident| resident.name != wanted.name);
    let own: u64 =
        residents.iter().filter(|resident| resident.name == wanted.name).map(|r| r.bytes).sum();
    let pinned = || others().filter(|resident| resident.pinned);
    let pinned_bytes: u64 = pinned().map(|resident| resident.bytes).sum();
    let over = wanted.bytes.saturating_add(own).saturating_add(pinned_bytes) > rules.budget;
    let no_place = is_new && pinned().count() >= rules.loaded_max;
    if over || no_place {
        return Plan::Never(why(rules, residents, wanted, !over));
    }
    // How many must go whatever their size, so that there is a place for one more.
    let places = if is_new { (residents.len() + 1).saturating_sub(rules.loaded_max) } else { 0 };
    if wanted.bytes <= rules.free && places == 0 {
        return Plan::Fits;
    }
    let mut candidates: Vec<&Resident> =
        others().filter(|resident| stays(rules, resident).is_none()).collect();
    candidates.sort_by(|a, b| worth(a).total_cmp(&worth(b)).then_with(|| a.name.cmp(&b.name)));
    let mut free = rules.free;
    let mut chosen: Vec<&Resident> = Vec::new();
    for resident in candidates {
        if wanted.bytes <= free && chosen.len() >= places {
            break;
        }
        free = free.saturating_add(resident.bytes);
        chosen.push(resident);
    }
    if wanted.bytes > free || chosen.len() < places {
        return Plan::Wait(why(rules, residents, wanted, wanted.bytes <= free));
    }
    spare(&mut chosen, wanted.bytes, free, places);
    Plan::Evict(chosen.into_iter().map(|resident| resident.name.clone()).collect())
}

/// How much a resident is worth keeping: less for each second of idleness, more for each second
/// that loading it takes.
fn worth(resident: &Resident) -> f64 {
    (resident.load_cost.as_secs_f64() + 1.0) / (resident.idle_for.as_secs_f64() + 1e-3)
}

/// Takes out again whom it can do without, the worthiest first.
fn spare(chosen: &mut Vec<&Resident>, wanted: u64, mut free: u64, least: usize) {
    for at in (0..chosen.len()).rev() {
        let without = free.saturating_sub(chosen[at].bytes);
        if without >= wanted && chosen.len() > least {
            free = without;
            chosen.remove(at);
        }
    }
}

fn stays(rules: &Rules, resident: &Resident) -> Option<Stays> {
    if resident.busy {
        Some(Stays::Busy)
    } else if resident.pinned {
        Some(Stays::Pinned)
    } else if resident.loaded_for < rules.residence_min {
        Some(Stays::Young(rules.residence_min - resident.loaded_for))
    } else {
        None
    }
}

fn why(rules: &Rules, residents: &[Resident], wanted: &Wanted, places: bool) -> Why {
    let held = |resident: &Resident| {
        let stays = stays(rules, resident).unwrap_or(Stays::NotEnough);
        (resident.name.clone(), resident.bytes, stays)
    };
    let own = residents.iter().find(|resident| resident.name == wanted.name);
    Why {
        needs: wanted.bytes,
        holds: own.map_or(0, |resident| resident.bytes),
        free: rules.free,
        budget: rules.budget,
        elsewhere: rules.elsewhere,
        places,
        held_by: residents
            .iter()
            .filter(|resident| resident.name != wanted.name)
            .map(held)
            .collect(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
