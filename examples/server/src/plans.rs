//! The plans that this service sells.

use std::sync::LazyLock;
use std::time::Duration;

use tenancy_core::quota::{Metric, Plan, Plans, Quota, Window};
use tenancy_core::{Result, Tenant, TenantId};
use tenancy_sqlx::SystemTx;

const MIB: u64 = 1024 * 1024;

static PLANS: LazyLock<Plans> = LazyLock::new(|| {
    let per_second = Window::Fixed { seconds: 1 };
    let free = Plan::new("free")
        .with(Quota::new(Metric::USERS, 3))
        .with(Quota::new(Metric::STORAGE, 100 * MIB))
        .with(Quota::new(Metric::API, 10_000).per(Window::MONTH))
        .with(Quota::new(Metric::API_RATE, 10).per(per_second).with_burst(50))
        .with(Quota::new(Metric::API_CONCURRENCY, 8));
    let standard = Plan::new(Tenant::DEFAULT_PLAN)
        .with(Quota::new(Metric::USERS, 25))
        .with(Quota::new(Metric::STORAGE, 10 * 1024 * MIB))
        .with(Quota::new(Metric::API, 1_000_000).per(Window::MONTH))
        .with(Quota::new(Metric::API_CONCURRENCY, 64));
    let unlimited = Plan::new("unlimited")
        .with(Quota::unlimited(Metric::USERS))
        .with(Quota::unlimited(Metric::STORAGE))
        .with(Quota::unlimited(Metric::API).per(Window::MONTH));
    Plans::new([free, standard, unlimited]).expect("the quotas above can be enforced: a test makes them")
});

/// All of them.
pub(crate) fn plans() -> &'static Plans {
    &PLANS
}

/// Gives a tenant the quotas of its plan.
///
/// # Errors
/// [`Invalid`](tenancy_core::ErrorKind::Invalid) for a plan that is not sold.
pub(crate) async fn entitle(tx: &mut SystemTx, tenant: TenantId, plan: &str) -> Result<()> {
    tx.entitle(tenant, plans().plan(plan)?).await
}

/// How long an upload's room is kept after it should have ended.
pub(crate) const ROOM_SLACK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_are_valid_and_have_the_default_one() {
        assert_eq!(plans().plan(Tenant::DEFAULT_PLAN).expect("sold").quotas().len(), 4);
        assert_eq!(plans().metrics().count(), 5);
    }
}
