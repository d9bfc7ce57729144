//! Why something was not admitted.

use std::fmt;
use std::time::Duration;

/// What stood in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The tenant has too much in flight on this node.
    Concurrency,
    /// The tenant comes too fast.
    Rate,
    /// The tenant has used up its period.
    Exhausted,
    /// This node is full, and others' share of it is kept for them.
    Shed,
    /// What is left can't be asked now.
    StoreAway,
}

impl Reason {
    /// The kebab-case name, stable.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
            Self::Exhausted => "exhausted",
            Self::Shed => "shed",
            Self::StoreAway => "store-away",
        }
    }

    /// Whether the tenant itself is over something, rather than the service out of capacity.
    pub const fn is_the_tenants(self) -> bool {
        matches!(self, Self::Concurrency | Self::Rate | Self::Exhausted)
    }
}

/// A refusal that consumed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The name of the metric that is used up.
    pub metric: &'static str,
    /// How much is allowed, if it is a quota that denies.
    pub limit: Option<u64>,
    /// Per how many seconds, nominally.
    pub window: Option<u64>,
    /// How much is left: less than was asked for.
    pub remaining: u64,
    /// When the same would be admitted, if nothing else comes in between; `None` if waiting does not help.
    pub retry_after: Option<Duration>,
}

impl Denial {
    /// A refusal for `reason`, on account of `metric`.
    pub const fn new(reason: Reason, metric: &'static str) -> Self {
        Self { reason, metric, limit: None, window: None, remaining: 0, retry_after: None }
    }

    /// The limit that was met, and the seconds that it is per.
    #[must_use]
    pub const fn with_limit(mut self, limit: Option<u64>, window: Option<u64>) -> Self {
        self.limit = limit;
        self.window = window;
        self
    }

    /// What is left.
    #[must_use]
    pub const fn with_remaining(mut self, remaining: u64) -> Self {
        self.remaining = remaining;
        self
    }

    /// When to come again.
    #[must_use]
    pub const fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The whole seconds to wait, rounded up: who waits so long is not refused for having come a moment early.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1))
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Concurrency => write!(f, "too many requests at once"),
            Reason::Rate => write!(f, "requests come too fast"),
            Reason::Exhausted => write!(f, "the quota of {} is used up", self.metric),
            Reason::Shed => write!(f, "the service is at capacity"),
            Reason::StoreAway => write!(f, "what is left of the quota can't be asked now"),
        }
    }
}

impl std::error::Error for Denial {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_and_never_zero() {
        let seconds = |wait| Denial::new(Reason::Rate, "api.rate").with_retry_after(Some(wait)).retry_after_seconds();
        assert_eq!(seconds(Duration::from_nanos(1)), Some(1));
        assert_eq!(seconds(Duration::from_millis(1001)), Some(2));
        assert_eq!(seconds(Duration::from_secs(7)), Some(7));
        assert_eq!(seconds(Duration::ZERO), Some(1));
        assert_eq!(Denial::new(Reason::Rate, "api.rate").retry_after_seconds(), None);
    }
}
