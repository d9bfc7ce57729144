//! What is measured.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// How a metric is measured, and so how its quota is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// A level that goes up and down: users, bytes stored.
    Gauge,
    /// Events in a window: API calls this month.
    Counter,
    /// Events per time, with bursts: calls per second.
    Rate,
    /// Work in progress at once, per node.
    Concurrency,
}

impl MetricKind {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
        }
    }
}

impl FromStr for MetricKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Gauge, Self::Counter, Self::Rate, Self::Concurrency]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| Error::invalid("kind", "must be gauge, counter, rate or concurrency"))
    }
}

/// Something that a quota can limit. The set is open: a host declares its own as constants.
///
/// ```
/// use tenancy_core::quota::Metric;
///
/// const SEATS: Metric = Metric::gauge("seats", "seats");
/// const EXPORTS: Metric = Metric::counter("exports", "exports");
/// assert_eq!(SEATS.name(), "seats");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Metric {
    name: &'static str,
    kind: MetricKind,
    unit: &'static str,
}

impl Metric {
    /// People with access to the tenant.
    pub const USERS: Self = Self::gauge("users", "users");
    /// Bytes that the tenant keeps.
    pub const STORAGE: Self = Self::gauge("storage", "bytes");
    /// API calls.
    pub const API: Self = Self::counter("api", "calls");
    /// API calls per time.
    pub const API_RATE: Self = Self::rate("api.rate", "calls");
    /// API calls at once, on one node.
    pub const API_CONCURRENCY: Self = Self::concurrency("api.concurrency", "calls");

    /// A level.
    ///
    /// # Panics
    /// If `name` does not have 1 to 40 characters of `a-z`, `0-9`, `_` and `.`: for a constant, when compiling.
    pub const fn gauge(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, MetricKind::Gauge, unit)
    }

    /// Events in a window.
    ///
    /// # Panics
    /// As [`gauge`](Metric::gauge).
    pub const fn counter(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, MetricKind::Counter, unit)
    }

    /// Events per time.
    ///
    /// # Panics
    /// As [`gauge`](Metric::gauge).
    pub const fn rate(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, MetricKind::Rate, unit)
    }

    /// Work at once.
    ///
    /// # Panics
    /// As [`gauge`](Metric::gauge).
    pub const fn concurrency(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, MetricKind::Concurrency, unit)
    }

    const fn new(name: &'static str, kind: MetricKind, unit: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty() && bytes.len() <= 40, "a metric's name has 1 to 40 characters");
        let mut i = 0;
        while i < bytes.len() {
            assert!(matches!(bytes[i], b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.'), "a metric's name has only a-z, 0-9, '_' and '.'");
            i += 1;
        }
        Self { name, kind, unit }
    }

    /// The name, as the API and the database know it.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// How it is measured.
    pub const fn kind(self) -> MetricKind {
        self.kind
    }

    /// What one of it is, in the plural: `users`, `bytes`, `calls`.
    pub const fn unit(self) -> &'static str {
        self.unit
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}
