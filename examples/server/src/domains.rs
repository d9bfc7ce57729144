//! Held domains are looked at again for as long as the server runs.

use std::sync::Arc;
use std::time::Duration;

use tenancy_core::TxtResolver;
use tenancy_sqlx::TenantDb;
use tenancy_sqlx::domains::Rechecker;

/// How often a node asks whether any is due.
const EVERY: Duration = Duration::from_secs(60);

/// Never ends by itself, and may end at any point.
pub(crate) async fn recheck(db: TenantDb, resolver: Arc<dyn TxtResolver>) {
    let rechecker = Rechecker::new(&db, resolver);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = rechecker.round().await {
            tracing::warn!(?error, "tenants' domains were not looked at: they are due again");
        }
    }
}
