//! Tenants that are made ahead, so that a sign-up takes one in its own transaction.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tenancy_core::quota::Plans;
use tenancy_core::{Actor, NewTenant, Result, Tenant, TenantChange, TenantId, TenantStatus};
use uuid::Uuid;

use crate::dangerous::begin_admin;
use crate::db::TenantDb;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// Tenants of the pool: they wait in `provisioning`, and their operation says that they are warm.
const POOL: &str =
    "from tenancy.tenants t join tenancy.operations o on o.tenant_id = t.id and o.kind = 'provision' and o.input -> 'warm' = 'true'
  where t.status = 'provisioning'";

/// Keeps a number of tenants made, with placeholders for slug and name. A [worker](crate::operations::Operations) makes them, and
/// [`take_warm`](SystemTx::take_warm) takes one.
///
/// A hook of the host sees the placeholders. What can't be made keeps its place, so that a failure is not repeated for ever: provision it again,
/// or erase it.
#[derive(Debug, Clone)]
pub struct WarmPool {
    db: TenantDb,
    plans: Plans,
    count: u32,
}

impl WarmPool {
    /// Keeps `count` tenants. `db` needs [administrative credentials](crate::Options::with_admin_url).
    pub fn new(db: &TenantDb, plans: Plans, count: u32) -> Self {
        Self { db: db.clone(), plans, count }
    }

    /// Adds the tenants that are missing, and queues their provisioning. Gives how many; none while another node does it.
    ///
    /// # Errors
    /// [`Misconfigured`](tenancy_core::ErrorKind::Misconfigured) without administrative credentials; [`Invalid`](tenancy_core::ErrorKind::Invalid)
    /// if the default plan is not sold; [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe: nothing is added.
    pub async fn fill(&self) -> Result<u32> {
        let (mut tx, now) = (begin_admin(self.db.inner(), Actor::System).await?, self.db.inner().clock.now());
        let mine: bool = sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended('tenancy warm pool', 0))")
            .fetch_one(&mut tx)
            .await
            .map_err(from_sqlx)?;
        if !mine {
            return Ok(0);
        }
        let query = format!("select count(distinct t.id) {POOL}");
        let kept: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut tx).await.map_err(from_sqlx)?;
        let missing = self.count.saturating_sub(u32::try_from(kept).unwrap_or(u32::MAX));
        for _ in 0..missing {
            let id = TenantId::new();
            let placeholder = format!("warm-{:012x}", id.as_uuid().as_u128() & 0xffff_ffff_ffff);
            let mut new = NewTenant::new(placeholder.parse()?, placeholder);
            new.id = id;
            tx.create_tenant(new, now).await?;
            tx.request_provisioning(id, &self.plans, json!({ "warm": true }), None).await?;
        }
        tx.commit().await?;
        Ok(missing)
    }

    /// [Fills](WarmPool::fill) the pool once per `interval`, until the future is dropped.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn run(self, interval: Duration) {
        loop {
            if let Err(error) = self.fill().await {
                tracing::warn!(?error, "the pool of tenants that are made ahead was not filled");
            }
            tokio::time::sleep(interval).await;
        }
    }
}

impl SystemTx {
    /// Takes a tenant that was made ahead, if there is one: it gets what `new` says, but for the id, with the quotas of its plan, and is active from
    /// the commit on. Of those who take at the same time, nobody waits, and each gets another one.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid), naming the field; [`Conflict`](tenancy_core::ErrorKind::Conflict) if the slug is taken.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn take_warm(&mut self, new: NewTenant, plans: &Plans, now: DateTime<Utc>) -> Result<Option<Tenant>> {
        let plan = plans.plan(&new.plan)?;
        let query = format!("select t.id {POOL} and o.state = 'done' order by t.id limit 1 for update of t skip locked");
        let id: Option<Uuid> = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_optional(&mut *self).await.map_err(from_sqlx)?;
        let Some(id) = id.map(TenantId::from_uuid).transpose()? else { return Ok(None) };
        let mut change = TenantChange::status(TenantStatus::Active);
        (change.slug, change.name, change.plan) = (Some(new.slug), Some(new.name), Some(new.plan.clone()));
        (change.branding, change.flags) = (Some(new.branding), Some(new.flags));
        let tenant = self.update_tenant(id, change, None, now).await?;
        self.entitle(id, plan).await?;
        Ok(Some(tenant))
    }
}
