//! Whose turn it is among tenants: start-time fair queueing (Goyal, Vin, Cheng: Start-time fair
//! queueing, SIGCOMM 1996) over units of work instead of packets.
//!
//! Every tenant has a tag that moves on with the work done for it, the slower the larger its
//! weight; the tenant with the lowest tag is next. One that comes back after a rest starts at the
//! common clock: rest is no credit. An admission is charged for in advance, so that a burst of
//! admissions is shared too; what was not used is given back.

use std::collections::HashMap;

/// What a generated token costs; one of the prompt costs 1. A decode step reads all weights for
/// one token a row, a prefill chunk for all of its tokens.
const GENERATED_COST: u64 = 8;

/// Generated tokens charged for at admission.
const GENERATED_IN_ADVANCE: u64 = 64;

/// Tags have this unit, so that weights divide costs finely.
const UNIT: u64 = 1 << 12;

/// Tenants kept track of beyond those that owe something, at the most.
const TENANTS_IDLE_MAX: usize = 256;

/// A tenant and its weight, as a sequence names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) id: u32,
    pub(crate) weight: u32,
}

impl Tenant {
    fn span(self, cost: u64) -> u64 {
        cost.saturating_mul(UNIT) / u64::from(self.weight.max(1))
    }
}

/// What was paid in advance for a sequence and not used yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Deposit(u64);

/// The tags of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    tags: HashMap<u32, u64>,
    clock: u64,
}

impl Shares {
    /// The lower, the sooner it is the tenant's turn.
    pub(crate) fn tag(&self, tenant: Tenant) -> u64 {
        self.tags.get(&tenant.id).copied().unwrap_or(0).max(self.clock)
    }

    /// A sequence with so many tokens to prefill and to generate at the most gets a place.
    pub(crate) fn admit(&mut self, tenant: Tenant, prefill: usize, generate: u32) -> Deposit {
        let begins = self.tag(tenant);
        self.clock = begins;
        let generate = u64::from(generate).min(GENERATED_IN_ADVANCE);
        let cost = prefill as u64 + generate * GENERATED_COST;
        if self.tags.len() >= TENANTS_IDLE_MAX {
            self.tags.retain(|_, tag| *tag > begins);
        }
        self.tags.insert(tenant.id, begins.saturating_add(tenant.span(cost)));
        Deposit(cost)
    }

    /// Prompt tokens were run.
    pub(crate) fn prefilled(&mut self, tenant: Tenant, deposit: &mut Deposit, tokens: usize) {
        self.charge(tenant, deposit, tokens as u64);
    }

    /// A token was generated.
    pub(crate) fn generated(&mut self, tenant: Tenant, deposit: &mut Deposit) {
        self.charge(tenant, deposit, GENERATED_COST);
    }

    fn charge(&mut self, tenant: Tenant, deposit: &mut Deposit, cost: u64) {
        let paid = cost.min(deposit.0);
        deposit.0 -= paid;
        if cost > paid {
            let tag = self.tags.entry(tenant.id).or_insert(self.clock);
            *tag = tag.saturating_add(tenant.span(cost - paid));
        }
    }

    /// A sequence is over: what was not used is given back.
    pub(crate) fn settle(&mut self, tenant: Tenant, deposit: Deposit) {
        if let Some(tag) = self.tags.get_mut(&tenant.id) {
            *tag = tag.saturating_sub(tenant.span(deposit.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Tenant = Tenant { id: 1, weight: 1 };
    const THREE: Tenant = Tenant { id: 2, weight: 3 };

    #[test]
    fn turns_go_by_weight() {
        let mut shares = Shares::default();
        let mut turns = [0, 0];
        for _ in 0..400 {
            let (at, tenant) =
                if shares.tag(THREE) <= shares.tag(ONE) { (1, THREE) } else { (0, ONE) };
            shares.admit(tenant, 100, 10);
            turns[at] += 1;
        }
        assert_eq!(turns, [100, 300]);
    }

    #[test]
    fn rest_is_no_credit_and_what_is_not_used_comes_back() {
        let mut shares = Shares::default();
        for _ in 0..10 {
            let deposit = shares.admit(ONE, 50, 0);
            assert_eq!(deposit, Deposit(50));
        }
        assert_eq!(shares.tag(THREE), shares.clock, "not ten turns in a row");
        let before = shares.tag(ONE);
        let mut deposit = shares.admit(ONE, 10, 1000);
        shares.prefilled(ONE, &mut deposit, 10);
        shares.generated(ONE, &mut deposit);
        shares.settle(ONE, deposit);
        assert_eq!(shares.tag(ONE) - before, (10 + GENERATED_COST) * UNIT);
    }

    #[test]
    fn a_long_answer_goes_on_being_charged() {
        let mut shares = Shares::default();
        let mut deposit = shares.admit(THREE, 0, 1000);
        for _ in 0..1000 {
            shares.generated(THREE, &mut deposit);
        }
        shares.settle(THREE, deposit);
        assert_eq!(
            shares.tag(THREE),
            GENERATED_IN_ADVANCE * GENERATED_COST * UNIT / 3 + 936 * (GENERATED_COST * UNIT / 3)
        );
    }

    #[test]
    fn tenants_that_owe_nothing_are_forgotten() {
        let mut shares = Shares::default();
        for id in 0..10_000 {
            shares.admit(Tenant { id, weight: 1 }, 1, 0);
            shares.clock += UNIT;
        }
        assert!(shares.tags.len() <= TENANTS_IDLE_MAX);
    }
}
