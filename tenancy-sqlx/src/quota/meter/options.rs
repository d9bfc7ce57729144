//! How a meter works, and what it has done.

use std::time::Duration;

use tenancy_core::quota::Metric;

/// What is decided where the database can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenAway {
    /// 503: nothing is used that nobody counts.
    #[default]
    Deny,
    /// It is admitted, and not counted.
    Admit,
}

/// What becomes of the units that a dead node had leased and not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settlement {
    /// They are lost until the period ends: they may have been spent. Never over the ceiling.
    #[default]
    Forfeit,
    /// They can be leased again: what the node had spent of them and not reported, at most about a second's worth, is spent twice.
    Release,
}

/// How a [`Meter`](super::Meter) works.
#[derive(Debug, Clone)]
#[must_use]
pub struct MeterOptions {
    pub(super) counter: Metric,
    pub(super) rate: Metric,
    pub(super) concurrency: Metric,
    pub(super) capacity: u32,
    pub(super) when_away: WhenAway,
    pub(super) settlement: Settlement,
    pub(super) silent: Duration,
    pub(super) idle: Duration,
    pub(super) keep: (Duration, Duration),
}

impl Default for MeterOptions {
    /// Meters [`Metric::API`], [`Metric::API_RATE`] and [`Metric::API_CONCURRENCY`].
    fn default() -> Self {
        Self::new(Metric::API, Metric::API_RATE, Metric::API_CONCURRENCY)
    }
}

impl MeterOptions {
    /// Meters these.
    pub fn new(counter: Metric, rate: Metric, concurrency: Metric) -> Self {
        let day = Duration::from_secs(86_400);
        Self {
            counter,
            rate,
            concurrency,
            capacity: 512,
            when_away: WhenAway::default(),
            settlement: Settlement::default(),
            silent: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            keep: (day * 90, day * 365 * 3),
        }
    }

    /// What this node does at once, over all tenants: 512 unless said. From half of it on, each tenant has its fair share.
    pub fn with_capacity(mut self, capacity: u32) -> Self {
        self.capacity = capacity.max(1);
        self
    }

    /// Whether counted requests pass while the database can't be asked. Rates and concurrency are decided without it, and are not
    /// enforced for tenants that this node has not met yet.
    pub fn with_quota_when_away(mut self, when_away: WhenAway) -> Self {
        self.when_away = when_away;
        self
    }

    /// What becomes of this node's units if it dies.
    pub fn with_crash_settlement(mut self, settlement: Settlement) -> Self {
        self.settlement = settlement;
        self
    }

    /// After so long without a word this node is given up, and stops to spend its units by itself: 30 s unless said, 3 s to a day.
    pub fn with_silence(mut self, silent: Duration) -> Self {
        self.silent = silent.clamp(Duration::from_secs(3), Duration::from_secs(86_400));
        self
    }

    /// A tenant without a request for so long is forgotten: 5 minutes unless said. Its units went back long before; its next request costs
    /// two round trips.
    pub fn with_idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// How long usage is kept by the minute (in whole months; 90 days unless said) and by the hour (3 years). Days are kept for ever.
    pub fn with_retention(mut self, minutes: Duration, hours: Duration) -> Self {
        self.keep = (minutes, hours);
        self
    }
}

/// What a meter has done since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MeterStats {
    /// Statements that leased or reported.
    pub round_trips: u64,
    /// Tenants that it remembers.
    pub tenants: usize,
    /// Requests in flight.
    pub in_flight: u32,
}
