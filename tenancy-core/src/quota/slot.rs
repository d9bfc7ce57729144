//! One tenant's place on one node, and the node itself: a handful of atomics.
//!
//! [`Slot::admit`] asks in this order, and undoes in reverse when a later one refuses, so that a denied request consumes nothing:
//!
//! 1. the tenant's own concurrency,
//! 2. the node's capacity, shared fairly,
//! 3. the tenant's rate,
//! 4. the units of its quota that this node has leased.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::Rate;

/// Which work goes first when a node is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Exports, batches: half of the node at most.
    Background,
    /// What a person waits for: nine tenths of the node.
    #[default]
    Normal,
    /// What must not fail: all of the node, and exempt from the fair share.
    Critical,
}

/// What a node can do at once, over all tenants.
#[derive(Debug)]
pub struct Node {
    capacity: u32,
    /// What is in flight, and from bit 32 on the number of tenants that have something in flight: one word, so that a request costs one
    /// exchange here when it comes and one when it goes.
    load: AtomicU64,
}

/// One tenant more in [`Node::load`].
const TENANT: u64 = 1 << 32;

impl Node {
    /// A node that does at most `capacity` things at once.
    pub const fn new(capacity: u32) -> Self {
        Self { capacity, load: AtomicU64::new(0) }
    }

    /// How much is in flight.
    pub fn in_flight(&self) -> u32 {
        parts(self.load.load(Relaxed)).0
    }

    /// How many tenants have something in flight.
    pub fn active(&self) -> u32 {
        parts(self.load.load(Relaxed)).1
    }

    /// From half full on, a tenant may have no more than its share: the capacity by the tenants that are active, and one more, so that
    /// there is always room for who comes next.
    fn enter(&self, priority: Priority, of_tenant: u32) -> bool {
        let more = if of_tenant == 1 { TENANT + 1 } else { 1 };
        let (total, active) = parts(self.load.fetch_add(more, Relaxed) + more);
        let open = match priority {
            Priority::Background => self.capacity / 2,
            Priority::Normal => self.capacity - self.capacity / 10,
            Priority::Critical => self.capacity,
        };
        let fair = total <= self.capacity / 2 || priority == Priority::Critical || of_tenant <= (self.capacity / (active + 1)).max(1);
        total <= open.max(1) && fair
    }

    fn leave(&self, last_of_tenant: bool) {
        self.load.fetch_sub(if last_of_tenant { TENANT + 1 } else { 1 }, Relaxed);
    }
}

/// What is in flight, and how many tenants are active.
const fn parts(load: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    (load as u32, (load >> 32) as u32)
}

/// What a tenant may do, as far as a node decides it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Terms {
    /// How fast.
    pub rate: Option<Rate>,
    /// How much at once.
    pub concurrency: Option<u32>,
}

/// Why a slot refuses. Times are nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Too much of this tenant in flight.
    Concurrency,
    /// The node is full.
    Shed,
    /// Too fast: wait so long, or for ever if the burst is smaller than the cost.
    Rate(Option<u64>),
    /// The period is used up, as the store said a moment ago.
    Exhausted,
    /// The leased units don't suffice, or are of a period that is over: ask the store.
    Short,
}

/// One tenant's place on one node.
#[derive(Debug)]
pub struct Slot {
    interval: AtomicU64,
    tolerance: AtomicU64,
    arrival: AtomicU64,
    concurrency: AtomicU32,
    in_flight: AtomicU32,
    /// Units that may be spent without asking anybody.
    left: AtomicU64,
    /// Below this many, more should be fetched.
    low: AtomicU64,
    /// The units are void from this time on: their period is over.
    until: AtomicU64,
    /// The store has no more before this time.
    exhausted_until: AtomicU64,
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

impl Slot {
    /// A slot without units, rate and concurrency limit.
    pub const fn new() -> Self {
        Self {
            interval: AtomicU64::new(1),
            tolerance: AtomicU64::new(0),
            arrival: AtomicU64::new(0),
            concurrency: AtomicU32::new(u32::MAX),
            in_flight: AtomicU32::new(0),
            left: AtomicU64::new(0),
            low: AtomicU64::new(0),
            until: AtomicU64::new(0),
            exhausted_until: AtomicU64::new(0),
        }
    }

    /// Sets what may be done; what is in flight stays.
    pub fn set_terms(&self, terms: Terms) {
        let (interval, tolerance) = terms.rate.map_or((1, 0), Rate::parts);
        // A reader in between sees a mixture, for one decision.
        self.interval.store(interval, Relaxed);
        self.tolerance.store(tolerance, Relaxed);
        self.concurrency.store(terms.concurrency.unwrap_or(u32::MAX), Relaxed);
    }

    /// Takes one place and `cost` units at `now`. `Ok(true)` says that the units run low. What was admitted must be
    /// [released](Slot::release).
    ///
    /// # Errors
    /// The first [`Refusal`], and then nothing has been taken.
    pub fn admit(&self, node: &Node, priority: Priority, cost: u64, now: u64) -> Result<bool, Refusal> {
        self.enter(node, priority, || self.pay(cost, now))
    }

    /// As [`admit`](Slot::admit), without spending units: where they can't be had, and it is not to be refused for that.
    ///
    /// # Errors
    /// As `admit`, but for [`Short`](Refusal::Short) and [`Exhausted`](Refusal::Exhausted).
    pub fn admit_unmetered(&self, node: &Node, priority: Priority, cost: u64, now: u64) -> Result<(), Refusal> {
        self.enter(node, priority, || self.pass(cost, now))
    }

    fn enter<T>(&self, node: &Node, priority: Priority, pay: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mine = self.in_flight.fetch_add(1, Relaxed) + 1;
        if mine > self.concurrency.load(Relaxed) {
            self.in_flight.fetch_sub(1, Relaxed);
            return Err(Refusal::Concurrency);
        }
        let admitted = if node.enter(priority, mine) { pay() } else { Err(Refusal::Shed) };
        if admitted.is_err() {
            self.release(node);
        }
        admitted
    }

    fn rate(&self) -> Option<Rate> {
        let tolerance = self.tolerance.load(Relaxed);
        (tolerance > 0).then(|| Rate::from_parts(self.interval.load(Relaxed), tolerance))
    }

    fn pass(&self, cost: u64, now: u64) -> Result<(), Refusal> {
        self.rate().map_or(Ok(()), |rate| rate.take(&self.arrival, cost, now)).map_err(Refusal::Rate)
    }

    fn pay(&self, cost: u64, now: u64) -> Result<bool, Refusal> {
        self.pass(cost, now)?;
        let paid = self.spend(cost, now);
        if paid.is_err()
            && let Some(rate) = self.rate()
        {
            rate.give_back(&self.arrival, cost);
        }
        paid
    }

    fn spend(&self, cost: u64, now: u64) -> Result<bool, Refusal> {
        if now >= self.until.load(Relaxed) {
            return Err(Refusal::Short);
        }
        let mut left = self.left.load(Relaxed);
        while left >= cost {
            match self.left.compare_exchange_weak(left, left - cost, Relaxed, Relaxed) {
                Ok(_) => return Ok(left - cost < self.low.load(Relaxed)),
                Err(seen) => left = seen,
            }
        }
        Err(if now < self.exhausted_until.load(Relaxed) { Refusal::Exhausted } else { Refusal::Short })
    }

    /// Ends what was admitted. The units stay spent.
    pub fn release(&self, node: &Node) {
        let last = self.in_flight.fetch_sub(1, Relaxed) == 1;
        node.leave(last);
    }

    /// Adds leased units, good until the time `until`; more should be fetched below `low`.
    pub fn add(&self, units: u64, low: u64, until: u64) {
        self.low.store(low, Relaxed);
        self.left.fetch_add(units, Relaxed);
        self.until.store(until, Relaxed);
    }

    /// Takes back up to `units` of what is left, and says how many.
    pub fn take_back(&self, units: u64) -> u64 {
        let taken = self.left.fetch_update(Relaxed, Relaxed, |left| Some(left - left.min(units)));
        taken.map_or(0, |left| left.min(units))
    }

    /// Nothing more is to be had before the time `until`.
    pub fn set_exhausted(&self, until: u64) {
        self.exhausted_until.store(until, Relaxed);
    }

    /// Units that may be spent.
    pub fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    /// When the units become void.
    pub fn until(&self) -> u64 {
        self.until.load(Relaxed)
    }

    /// What is in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// How many units fit in the rate at `now`, and how many at most; `None` without a rate.
    pub fn rate_left(&self, now: u64) -> Option<(u64, u64)> {
        self.rate().map(|rate| (rate.remaining(&self.arrival, now), rate.burst()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const NEVER: u64 = u64::MAX;

    fn slot(units: u64) -> Slot {
        let slot = Slot::new();
        slot.add(units, 0, NEVER);
        slot
    }

    #[test]
    fn a_denied_request_consumes_nothing() {
        let second = 1_000_000_000;
        // What is refused, by which step, with everything before it in place.
        for (refusal, concurrency, capacity, burst, units) in [
            (Refusal::Concurrency, 0, 10, 10, 10),
            (Refusal::Shed, 5, 0, 10, 10),
            (Refusal::Rate(None), 5, 10, 1, 10),
            (Refusal::Short, 5, 10, 10, 1),
        ] {
            let (node, slot) = (Node::new(capacity), slot(units));
            slot.set_terms(Terms { rate: Some(Rate::new(burst, second, burst)), concurrency: Some(concurrency) });
            if capacity == 0 {
                node.load.store(1, Relaxed);
            }
            let before = (node.in_flight(), node.active(), slot.in_flight(), slot.left(), slot.rate_left(second));
            assert_eq!(slot.admit(&node, Priority::Normal, 2, second), Err(refusal));
            assert_eq!((node.in_flight(), node.active(), slot.in_flight(), slot.left(), slot.rate_left(second)), before, "{refusal:?}");
        }
    }

    #[test]
    fn units_of_a_period_that_is_over_are_not_spent() {
        let (node, slot) = (Node::new(10), Slot::new());
        slot.add(5, 0, 100);
        slot.admit(&node, Priority::Normal, 1, 99).expect("within the period");
        assert_eq!(slot.admit(&node, Priority::Normal, 1, 100), Err(Refusal::Short));
        assert_eq!(slot.take_back(NEVER), 4);
    }

    #[test]
    fn many_threads_spend_exactly_what_there_is() {
        let (node, slot, start) = (Node::new(1000), slot(10_000), Barrier::new(4));
        let spent: usize = thread::scope(|scope| {
            let worker = || {
                start.wait();
                (0..5_000).filter(|_| slot.admit(&node, Priority::Normal, 1, 0).is_ok_and(|_| (slot.release(&node), true).1)).count()
            };
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
        });
        assert_eq!(spent, 10_000);
        assert_eq!((node.in_flight(), node.active(), slot.in_flight(), slot.left()), (0, 0, 0, 0));
    }

    #[test]
    fn a_hot_tenant_leaves_the_others_their_share() {
        let (node, hot, quiet) = (Node::new(100), slot(NEVER / 2), slot(NEVER / 2));
        quiet.admit(&node, Priority::Normal, 1, 0).expect("quiet");
        let admitted = (0..200).filter(|_| hot.admit(&node, Priority::Normal, 1, 0).is_ok()).count();
        assert_eq!(admitted, 49, "half of the node is full, and a third would be its share");
        for _ in 0..30 {
            quiet.admit(&node, Priority::Normal, 1, 0).expect("the quiet tenant is never refused");
        }
        // Alone, it has half of the node: the first of the others finds room. What is critical goes on.
        let (node, hot) = (Node::new(100), slot(NEVER / 2));
        let count = |priority, node: &Node| (0..200).filter(|_| hot.admit(node, priority, 1, 0).is_ok()).count();
        assert_eq!(count(Priority::Background, &node), 50);
        assert_eq!(count(Priority::Normal, &node), 0);
        assert_eq!(count(Priority::Critical, &node), 50);
        let (node, other) = (Node::new(100), slot(NEVER / 2));
        assert_eq!(count(Priority::Normal, &node), 50);
        assert!(other.admit(&node, Priority::Normal, 1, 0).is_ok());
    }

    #[test]
    fn running_low_is_told_and_exhaustion_is_remembered() {
        let (node, slot) = (Node::new(10), Slot::new());
        slot.add(3, 2, NEVER);
        assert_eq!(slot.admit(&node, Priority::Normal, 1, 0), Ok(false));
        assert_eq!(slot.admit(&node, Priority::Normal, 1, 0), Ok(true));
        slot.set_exhausted(50);
        assert_eq!(slot.admit(&node, Priority::Normal, 2, 49), Err(Refusal::Exhausted));
        assert_eq!(slot.admit(&node, Priority::Normal, 2, 50), Err(Refusal::Short));
        assert_eq!(slot.admit(&node, Priority::Normal, 1, 0), Ok(true), "what is left is served all the same");
    }
}
