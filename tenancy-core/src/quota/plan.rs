//! What each plan gives.

use std::collections::BTreeMap;

use super::{Metric, Quota};
use crate::error::{Error, Result};

/// A plan: the quotas that its tenants have unless they are given others.
#[derive(Debug, Clone)]
pub struct Plan {
    name: String,
    quotas: Vec<Quota>,
}

impl Plan {
    /// A plan without quotas.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), quotas: Vec::new() }
    }

    /// Gives a quota; a second one of the same metric replaces the first.
    #[must_use]
    pub fn with(mut self, quota: Quota) -> Self {
        self.quotas.retain(|other| other.metric != quota.metric);
        self.quotas.push(quota);
        self
    }

    /// The name, as tenants have it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its quotas.
    pub fn quotas(&self) -> &[Quota] {
        &self.quotas
    }
}

/// The plans that a service sells, and with them the metrics that it knows.
#[derive(Debug, Clone)]
pub struct Plans {
    plans: BTreeMap<String, Plan>,
    metrics: BTreeMap<&'static str, Metric>,
}

impl Plans {
    /// Some plans.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) for a quota that could not be enforced, or one name for two metrics.
    pub fn new(plans: impl IntoIterator<Item = Plan>) -> Result<Self> {
        let mut all = Self { plans: BTreeMap::new(), metrics: BTreeMap::new() };
        for plan in plans {
            for quota in &plan.quotas {
                quota.check()?;
                let known = *all.metrics.entry(quota.metric.name()).or_insert(quota.metric);
                if known != quota.metric {
                    return Err(Error::invalid("metric", format!("{known} is declared in two ways")));
                }
            }
            all.plans.insert(plan.name.clone(), plan);
        }
        Ok(all)
    }

    /// The plan of this name.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) at `plan`, with the names there are.
    pub fn plan(&self, name: &str) -> Result<&Plan> {
        let names = || self.plans.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.plans.get(name).ok_or_else(|| Error::invalid("plan", format!("must be one of: {}", names())))
    }

    /// The metric of this name.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) at `metric`, with the names there are.
    pub fn metric(&self, name: &str) -> Result<Metric> {
        let names = || self.metrics.keys().copied().collect::<Vec<_>>().join(", ");
        self.metrics.get(name).copied().ok_or_else(|| Error::invalid("metric", format!("must be one of: {}", names())))
    }

    /// Every metric that a plan has a quota of.
    pub fn metrics(&self) -> impl Iterator<Item = Metric> {
        self.metrics.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_and_metrics_are_found_by_name_and_others_refused_with_the_names_there_are() {
        let plans = Plans::new([
            Plan::new("free").with(Quota::new(Metric::USERS, 3)).with(Quota::new(Metric::USERS, 5)),
            Plan::new("pro").with(Quota::new(Metric::STORAGE, 1 << 30)),
        ]);
        let plans = plans.expect("valid");
        assert_eq!(plans.plan("free").expect("free").quotas(), [Quota::new(Metric::USERS, 5)]);
        assert_eq!(plans.metric("storage").expect("storage"), Metric::STORAGE);
        assert!(plans.plan("gold").expect_err("none").message().ends_with("free, pro"));
        assert!(plans.metric("seats").expect_err("none").message().ends_with("storage, users"));
        assert!(Plans::new([Plan::new("x").with(Quota::new(Metric::API_RATE, 1))]).is_err());
        let twice =
            [Plan::new("x").with(Quota::new(Metric::USERS, 1)), Plan::new("y").with(Quota::new(Metric::gauge("users", "seats"), 1))];
        assert!(Plans::new(twice).is_err());
    }
}
