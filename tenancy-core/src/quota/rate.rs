//! The generic cell rate algorithm: a bucket without a timer.

use std::sync::atomic::{AtomicU64, Ordering};

/// So many per time, with bursts. Times are nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Between two units.
    interval: u64,
    /// How far ahead of time units may come: the whole burst.
    tolerance: u64,
}

impl Rate {
    /// `limit` units per `nanoseconds`, of which `burst` may come at once.
    ///
    /// # Panics
    /// Never: zeros are taken for ones.
    pub fn new(limit: u64, nanoseconds: u64, burst: u64) -> Self {
        let interval = (nanoseconds / limit.max(1)).max(1);
        Self { interval, tolerance: interval.saturating_mul(burst.max(1)) }
    }

    pub(super) const fn parts(self) -> (u64, u64) {
        (self.interval, self.tolerance)
    }

    pub(super) const fn from_parts(interval: u64, tolerance: u64) -> Self {
        Self { interval, tolerance }
    }

    /// How many may come at once.
    pub const fn burst(self) -> u64 {
        self.tolerance / self.interval
    }

    /// Takes `cost` units at `now`, or says how many nanoseconds to wait; `None` means that so many never fit. `arrival` is the cell: the
    /// time at which the bucket will be full again.
    ///
    /// # Errors
    /// The wait.
    pub fn take(self, arrival: &AtomicU64, cost: u64, now: u64) -> Result<(), Option<u64>> {
        let cost = self.interval.saturating_mul(cost);
        if cost > self.tolerance {
            return Err(None);
        }
        let mut seen = arrival.load(Ordering::Relaxed);
        loop {
            let next = seen.max(now).saturating_add(cost);
            let ahead = next - now.min(next);
            if ahead > self.tolerance {
                return Err(Some(ahead - self.tolerance));
            }
            match arrival.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => seen = other,
            }
        }
    }

    /// Gives back what was taken.
    pub(super) fn give_back(self, arrival: &AtomicU64, cost: u64) {
        arrival.fetch_sub(self.interval.saturating_mul(cost), Ordering::Relaxed);
    }

    /// How many units fit at `now`.
    pub(super) fn remaining(self, arrival: &AtomicU64, now: u64) -> u64 {
        let ahead = arrival.load(Ordering::Relaxed).saturating_sub(now);
        self.tolerance.saturating_sub(ahead) / self.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (rate, cell) = (Rate::new(10, SECOND, 5), AtomicU64::new(0));
        let mut now = 1_000 * SECOND;
        for left in (0..5).rev() {
            rate.take(&cell, 1, now).expect("within the burst");
            assert_eq!(rate.remaining(&cell, now), left);
        }
        assert_eq!(rate.take(&cell, 1, now), Err(Some(SECOND / 10)));
        // Told to wait so long, it passes then, and not a nanosecond before.
        assert_eq!(rate.take(&cell, 1, now + SECOND / 10 - 1), Err(Some(1)));
        now += SECOND / 10;
        rate.take(&cell, 1, now).expect("after the wait");
        assert_eq!(rate.take(&cell, 6, now), Err(None), "more than a burst never fits");
    }

    #[test]
    fn over_any_second_no_more_than_burst_and_rate_pass() {
        let (rate, cell) = (Rate::new(100, SECOND, 20), AtomicU64::new(0));
        let passed = (0..3 * SECOND).step_by(777_777).filter(|now| rate.take(&cell, 1, 5 * SECOND + now).is_ok()).count();
        assert!((300..=320).contains(&passed), "{passed}");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_a_clock_that_goes_back_does_no_harm() {
        let (rate, cell) = (Rate::new(1, SECOND, 1), AtomicU64::new(0));
        rate.take(&cell, 1, SECOND).expect("first");
        rate.give_back(&cell, 1);
        rate.take(&cell, 1, SECOND).expect("again");
        assert_eq!(rate.take(&cell, 1, 0), Err(Some(2 * SECOND)));
        assert_eq!(rate.remaining(&cell, 0), 0);
    }
}
