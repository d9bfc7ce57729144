//! Which tenants a metric may name: the busiest few, and the rest together, so that a thousand tenants are not a thousand series.

use std::collections::HashMap;

use tenancy_core::TenantId;

/// How many tenants are named.
pub(super) const NAMED: usize = 20;
/// What the others are called.
pub(super) const OTHERS: &str = "other";

/// How busy tenants have been lately.
#[derive(Debug, Default)]
pub(super) struct Busiest {
    scores: HashMap<TenantId, f64>,
}

impl Busiest {
    /// Takes note of a second's requests, and says which of these tenants are named. A tenant that is named stays so for a while after it
    /// has become quiet.
    pub(super) fn note(&mut self, requests: impl IntoIterator<Item = (TenantId, u64)>) -> Vec<TenantId> {
        // Half is forgotten in about a minute.
        self.scores.values_mut().for_each(|score| *score *= 0.99);
        for (tenant, count) in requests {
            // Precision does not matter: it is a ranking.
            #[expect(clippy::cast_precision_loss, reason = "a ranking")]
            let count = count as f64;
            *self.scores.entry(tenant).or_default() += count;
        }
        let mut ranked: Vec<(TenantId, f64)> = self.scores.iter().map(|(tenant, score)| (*tenant, *score)).collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let named: Vec<TenantId> = ranked.iter().take(NAMED).map(|(tenant, _)| *tenant).collect();
        // What is far from being named need not be remembered.
        for (tenant, _) in ranked.iter().skip(NAMED * 50) {
            self.scores.remove(tenant);
        }
        self.scores.retain(|_, score| *score > 0.01);
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_are_named_and_their_number_is_bounded() {
        let tenants: Vec<TenantId> = (0..5000).map(|_| TenantId::new()).collect();
        let mut busiest = Busiest::default();
        let named = busiest.note(tenants.iter().enumerate().map(|(n, tenant)| (*tenant, n as u64)));
        assert_eq!(named.len(), NAMED);
        assert!(named.iter().all(|tenant| tenants[4980..].contains(tenant)));
        assert!(busiest.scores.len() <= NAMED * 50);
        // Quiet ones fade, and others take their place.
        let mut named = Vec::new();
        for _ in 0..1500 {
            named = busiest.note(tenants[..10].iter().map(|tenant| (*tenant, 3)));
        }
        assert_eq!(named.len(), 10);
        assert!(named.iter().all(|tenant| tenants[..10].contains(tenant)));
    }
}
