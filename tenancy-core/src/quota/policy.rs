//! From a limit to the one number that is enforced.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Metric, MetricKind, Rate, Window};
use crate::error::{Error, Result};

/// What happens at the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum QuotaPolicy {
    /// Nothing passes the limit. Written `hard`.
    #[default]
    Hard,
    /// So many percent more pass, while the tenant is asked to upgrade. Written `grace:10`.
    Grace {
        /// Of the limit; rounded down.
        percent: u16,
    },
    /// So many units more pass, and are charged. Written `overage:5000`.
    Overage {
        /// In units of the metric.
        units: u64,
    },
    /// Everything passes; the limit only alerts. Written `soft`.
    Soft,
}

impl QuotaPolicy {
    /// The most that may be used under `limit`; `None` if nothing is enforced.
    ///
    /// ```
    /// use tenancy_core::quota::QuotaPolicy;
    /// assert_eq!(QuotaPolicy::Hard.ceiling(200), Some(200));
    /// assert_eq!(QuotaPolicy::Grace { percent: 10 }.ceiling(25), Some(27));
    /// assert_eq!(QuotaPolicy::Overage { units: 50 }.ceiling(200), Some(250));
    /// assert_eq!(QuotaPolicy::Soft.ceiling(200), None);
    /// ```
    pub fn ceiling(self, limit: u64) -> Option<u64> {
        let ceiling = match self {
            Self::Hard => limit,
            Self::Grace { percent } => {
                let more = u128::from(limit) * u128::from(percent) / 100;
                limit.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
            }
            Self::Overage { units } => limit.saturating_add(units),
            Self::Soft => return None,
        };
        Some(ceiling.min(Quota::MOST))
    }
}

impl fmt::Display for QuotaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hard => f.write_str("hard"),
            Self::Grace { percent } => write!(f, "grace:{percent}"),
            Self::Overage { units } => write!(f, "overage:{units}"),
            Self::Soft => f.write_str("soft"),
        }
    }
}

impl FromStr for QuotaPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::invalid("policy", "must be hard, grace:<percent, 1 to 1000>, overage:<units> or soft");
        match text.split_once(':') {
            None if text == "hard" => Ok(Self::Hard),
            None if text == "soft" => Ok(Self::Soft),
            Some(("grace", percent)) => match percent.parse() {
                Ok(percent @ 1..=1000) => Ok(Self::Grace { percent }),
                _ => Err(invalid()),
            },
            Some(("overage", units)) => match units.parse() {
                Ok(units @ 1..=Quota::MOST) => Ok(Self::Overage { units }),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }
}

impl Serialize for QuotaPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QuotaPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(|e: Error| serde::de::Error::custom(e.message()))
    }
}

/// How much of one metric a tenant may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Quota {
    /// Of what.
    pub metric: Metric,
    /// How much; `None` is unlimited.
    pub limit: Option<u64>,
    /// For a counter the period, for a rate the time that `limit` is per; other kinds have [`Window::Lifetime`].
    pub window: Window,
    /// For a rate, how many may come at once; as many as `limit`, unless said.
    pub burst: Option<u64>,
    /// What happens at the limit.
    pub policy: QuotaPolicy,
    /// Percentages of the limit at which the tenant's admins are told, ascending.
    pub alert_at: Vec<u8>,
}

impl Quota {
    /// The largest limit: what PostgreSQL's bigint holds, and a millionth of it is no rounding error in JavaScript.
    pub const MOST: u64 = i64::MAX as u64 / 4;

    /// At most `limit` of a gauge or at once, told at 80 and 100 percent. For a counter see [`per`](Quota::per).
    pub fn new(metric: Metric, limit: u64) -> Self {
        let alert_at = if matches!(metric.kind(), MetricKind::Gauge | MetricKind::Counter) { vec![80, 100] } else { Vec::new() };
        Self { metric, limit: Some(limit), window: Window::Lifetime, burst: None, policy: QuotaPolicy::Hard, alert_at }
    }

    /// Any amount: it is measured, and not limited.
    pub fn unlimited(metric: Metric) -> Self {
        Self { limit: None, ..Self::new(metric, 0) }
    }

    /// The limit is per `window`.
    #[must_use]
    pub fn per(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// How many of a rate may come at once.
    #[must_use]
    pub fn with_burst(mut self, burst: u64) -> Self {
        self.burst = Some(burst);
        self
    }

    /// What happens at the limit.
    #[must_use]
    pub fn with_policy(mut self, policy: QuotaPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// When the tenant's admins are told, in percent of the limit.
    #[must_use]
    pub fn with_alerts(mut self, percent: impl IntoIterator<Item = u8>) -> Self {
        self.alert_at = percent.into_iter().collect();
        self
    }

    /// The most that may be used; `None` if nothing is enforced.
    pub fn ceiling(&self) -> Option<u64> {
        self.limit.and_then(|limit| self.policy.ceiling(limit))
    }

    /// As a rate, if the metric is one and limited.
    pub fn rate(&self) -> Option<Rate> {
        let Window::Fixed { seconds, .. } = self.window else { return None };
        let per = u64::from(seconds) * 1_000_000_000;
        (self.metric.kind() == MetricKind::Rate).then(|| self.ceiling().map(|limit| Rate::new(limit, per, self.burst.unwrap_or(limit))))?
    }

    /// Refuses what could not be enforced.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), with the field and what it accepts.
    pub fn check(&self) -> Result<()> {
        if self.limit.is_some_and(|limit| limit > Self::MOST) {
            return Err(Error::invalid("limit", format!("must be at most {}", Self::MOST)));
        }
        let rate = self.metric.kind() == MetricKind::Rate;
        match (self.metric.kind(), &self.window) {
            (MetricKind::Rate, Window::Fixed { .. }) | (MetricKind::Counter, _) => {}
            (MetricKind::Rate, _) => return Err(Error::invalid("window", "must be a fixed length for a rate, such as 1s or 60s")),
            (_, Window::Lifetime) => {}
            (kind, _) => {
                let kind = if kind == MetricKind::Gauge { "a gauge" } else { "a concurrency" };
                return Err(Error::invalid("window", format!("must be lifetime for {kind}: it has a level, and no period")));
            }
        }
        if rate && self.limit == Some(0) {
            return Err(Error::invalid("limit", "must be at least 1 for a rate; suspend the tenant to admit nothing"));
        }
        if self.burst.is_some_and(|burst| !rate || burst == 0 || burst > Self::MOST) {
            return Err(Error::invalid("burst", "is for rates, and must be at least 1"));
        }
        let ascending = self.alert_at.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || self.alert_at.len() > 8 || self.alert_at.iter().any(|percent| !(1..=200).contains(percent)) {
            return Err(Error::invalid("alert_at", "must be at most 8 percentages from 1 to 200, ascending"));
        }
        if !self.alert_at.is_empty() && !matches!(self.metric.kind(), MetricKind::Gauge | MetricKind::Counter) {
            return Err(Error::invalid("alert_at", "is for gauges and counters"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_written_as_it_is_read() {
        for text in ["hard", "soft", "grace:10", "overage:5000"] {
            assert_eq!(text.parse::<QuotaPolicy>().expect(text).to_string(), text);
        }
        for bad in ["", "Hard", "grace", "grace:0", "grace:1001", "overage:-1", "overage:", "soft:1"] {
            assert!(bad.parse::<QuotaPolicy>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ceiling_never_overflows_nor_falls_below_the_limit() {
        for limit in [0, 1, 99, 1 << 40, Quota::MOST] {
            for policy in [QuotaPolicy::Hard, QuotaPolicy::Grace { percent: 1000 }, QuotaPolicy::Overage { units: Quota::MOST }] {
                let ceiling = policy.ceiling(limit).expect("enforced");
                assert!((limit..=Quota::MOST).contains(&ceiling), "{policy} of {limit}: {ceiling}");
            }
        }
    }

    #[test]
    fn what_could_not_be_enforced_is_refused_by_field() {
        let second = Window::Fixed { seconds: 1 };
        let cases = [
            (Quota::new(Metric::USERS, Quota::MOST + 1), "limit"),
            (Quota::new(Metric::USERS, 5).per(second.clone()), "window"),
            (Quota::new(Metric::API_RATE, 5), "window"),
            (Quota::new(Metric::API_RATE, 0).per(second.clone()), "limit"),
            (Quota::new(Metric::API_RATE, 5).per(second.clone()).with_burst(0), "burst"),
            (Quota::new(Metric::USERS, 5).with_burst(2), "burst"),
            (Quota::new(Metric::USERS, 5).with_alerts([100, 80]), "alert_at"),
            (Quota::new(Metric::USERS, 5).with_alerts([0]), "alert_at"),
            (Quota::new(Metric::API_CONCURRENCY, 5).with_alerts([80]), "alert_at"),
        ];
        for (quota, field) in cases {
            assert_eq!(quota.check().expect_err(field).field(), Some(field), "{quota:?}");
        }
        for good in [
            Quota::new(Metric::USERS, 0),
            Quota::unlimited(Metric::STORAGE),
            Quota::new(Metric::API, 5).per("month@UTC".parse().expect("a window")),
            Quota::new(Metric::API_RATE, 5).per(second).with_burst(50),
        ] {
            good.check().expect("good");
        }
    }
}
