//! Who was promised which bytes. No byte of the budget is promised twice.

use std::collections::BTreeMap;

/// What one holder was promised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// For being there: weights, caches, the transient of its work.
    pub base: u64,
    /// For what its sequences keep.
    pub grown: u64,
}

impl Held {
    /// Both.
    pub fn total(&self) -> u64 {
        self.base.saturating_add(self.grown)
    }
}

/// Why the ledger does not promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerFault {
    /// Less than that is free.
    #[error("{wanted} bytes are wanted and {free} of {budget} are free")]
    Short {
        /// What was asked for.
        wanted: u64,
        /// What nobody holds.
        free: u64,
        /// All there is.
        budget: u64,
    },
    /// Nothing was promised to that holder.
    #[error("{0} holds nothing")]
    Unknown(String),
    /// It has a base already.
    #[error("{0} holds its memory already")]
    Twice(String),
}

/// The ledger of one machine. Holders have names.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    budget: u64,
    held: BTreeMap<String, Held>,
}

impl Ledger {
    /// An empty ledger over `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self { budget, held: BTreeMap::new() }
    }

    /// All there is.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// What is promised, over all holders.
    pub fn promised(&self) -> u64 {
        self.held.values().map(Held::total).fold(0, u64::saturating_add)
    }

    /// What nobody holds. Zero when corrections have gone over the budget.
    pub fn free(&self) -> u64 {
        self.budget.saturating_sub(self.promised())
    }

    /// What `holder` was promised.
    pub fn held(&self, holder: &str) -> Option<Held> {
        self.held.get(holder).copied()
    }

    /// Everybody with what they hold, in order of their names.
    pub fn holders(&self) -> impl Iterator<Item = (&str, Held)> {
        self.held.iter().map(|(name, held)| (name.as_str(), *held))
    }

    /// Promises `holder` its base.
    ///
    /// # Errors
    /// [`LedgerFault::Short`], [`LedgerFault::Twice`].
    pub fn grant(&mut self, holder: &str, base: u64) -> Result<(), LedgerFault> {
        if self.held.contains_key(holder) {
            return Err(LedgerFault::Twice(holder.to_owned()));
        }
        self.check(base)?;
        self.held.insert(holder.to_owned(), Held { base, grown: 0 });
        Ok(())
    }

    /// Promises `holder` so many bytes more.
    ///
    /// # Errors
    /// [`LedgerFault::Short`], [`LedgerFault::Unknown`].
    pub fn grow(&mut self, holder: &str, bytes: u64) -> Result<(), LedgerFault> {
        if !self.held.contains_key(holder) {
            return Err(LedgerFault::Unknown(holder.to_owned()));
        }
        self.check(bytes)?;
        if let Some(held) = self.held.get_mut(holder) {
            held.grown += bytes;
        }
        Ok(())
    }

    /// `holder` gives back what it grew by, or a part of it.
    pub fn shrink(&mut self, holder: &str, bytes: u64) {
        if let Some(held) = self.held.get_mut(holder) {
            held.grown = held.grown.saturating_sub(bytes);
        }
    }

    /// `holder` is gone. Gives what it held.
    pub fn release(&mut self, holder: &str) -> Option<Held> {
        self.held.remove(holder)
    }

    /// What `holder` takes for being there was measured: that is what it holds from now on, also
    /// when that is more than was free. Nothing is promised to anybody before it is again.
    pub fn correct(&mut self, holder: &str, base: u64) {
        if let Some(held) = self.held.get_mut(holder) {
            held.base = base;
        }
    }

    /// Another budget. Promises stay.
    pub fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
    }

    fn check(&self, wanted: u64) -> Result<(), LedgerFault> {
        let free = self.free();
        match wanted <= free {
            true => Ok(()),
            false => Err(LedgerFault::Short { wanted, free, budget: self.budget }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Call {
        Grant(usize, u64),
        Grow(usize, u64),
        Shrink(usize, u64),
        Release(usize),
        Correct(usize, u64),
        Budget(u64),
    }

    fn call() -> impl Strategy<Value = Call> {
        let holder = 0usize..4;
        let bytes = prop_oneof![0u64..200, Just(u64::MAX), Just(u64::MAX / 2)];
        prop_oneof![
            4 => (holder.clone(), bytes.clone()).prop_map(|(h, b)| Call::Grant(h, b)),
            6 => (holder.clone(), bytes.clone()).prop_map(|(h, b)| Call::Grow(h, b)),
            4 => (holder.clone(), bytes).prop_map(|(h, b)| Call::Shrink(h, b)),
            3 => holder.clone().prop_map(Call::Release),
            1 => (holder, 0u64..300).prop_map(|(h, b)| Call::Correct(h, b)),
            1 => (0u64..500).prop_map(Call::Budget),
        ]
    }

    proptest! {
        /// The ledger against one cell per byte: a byte has one owner, and a promise is kept only
        /// where every byte of it was nobody's.
        #[test]
        fn no_byte_is_promised_twice(calls in proptest::collection::vec(call(), 1..120)) {
            let names = ["a", "b", "c", "d"];
            let mut ledger = Ledger::new(400);
            // What each really was given, kept apart from the ledger's own sums.
            let mut owned = [None::<(u128, u128)>; 4];
            let mut budget = 400u128;
            for call in calls {
                let taken: u128 = owned.iter().flatten().map(|(base, grown)| base + grown).sum();
                let room = budget.saturating_sub(taken);
                match call {
                    Call::Grant(h, bytes) => {
                        let fits = owned[h].is_none() && u128::from(bytes) <= room;
                        prop_assert_eq!(ledger.grant(names[h], bytes).is_ok(), fits);
                        if fits { owned[h] = Some((bytes.into(), 0)); }
                    }
                    Call::Grow(h, bytes) => {
                        let fits = owned[h].is_some() && u128::from(bytes) <= room;
                        prop_assert_eq!(ledger.grow(names[h], bytes).is_ok(), fits);
                        if let (true, Some((_, grown))) = (fits, owned[h].as_mut()) {
                            *grown += u128::from(bytes);
                        }
                    }
                    Call::Shrink(h, bytes) => {
                        ledger.shrink(names[h], bytes);
                        if let Some((_, grown)) = owned[h].as_mut() {
                            *grown = grown.saturating_sub(bytes.into());
                        }
                    }
                    Call::Release(h) => {
                        let gone = ledger.release(names[h]);
                        prop_assert_eq!(gone.is_some(), owned[h].take().is_some());
                    }
                    Call::Correct(h, bytes) => {
                        ledger.correct(names[h], bytes);
                        if let Some((base, _)) = owned[h].as_mut() { *base = bytes.into(); }
                    }
                    Call::Budget(bytes) => {
                        ledger.set_budget(bytes);
                        budget = bytes.into();
                    }
                }
                let taken: u128 = owned.iter().flatten().map(|(base, grown)| base + grown).sum();
                prop_assert_eq!(u128::from(ledger.promised()), taken);
                prop_assert_eq!(u128::from(ledger.free()), budget.saturating_sub(taken));
            }
        }
    }

    #[test]
    fn a_refusal_says_the_numbers() {
        let mut ledger = Ledger::new(100);
        ledger.grant("a", 60).unwrap();
        let fault = ledger.grant("b", 50).unwrap_err();
        assert_eq!(fault, LedgerFault::Short { wanted: 50, free: 40, budget: 100 });
        assert_eq!(ledger.grow("b", 1), Err(LedgerFault::Unknown("b".into())));
        // Measured more than promised: nothing is free, and nothing is promised until it is.
        ledger.correct("a", 150);
        assert_eq!((ledger.free(), ledger.grow("a", 1).is_ok()), (0, false));
        assert_eq!(ledger.release("a"), Some(Held { base: 150, grown: 0 }));
        assert_eq!(ledger.free(), 100);
    }
}
