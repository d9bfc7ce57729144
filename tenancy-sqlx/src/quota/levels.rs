//! Setting quotas, and reading how a tenant stands.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{Executor, Postgres, Row};
use tenancy_core::quota::{Metric, MetricKind, Plan, Quota, QuotaPolicy, Window};
use tenancy_core::{AuditEvent, Result, TenantId};

use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

/// One quota of a tenant, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QuotaState {
    /// Of what.
    pub metric: String,
    /// How it is measured.
    pub kind: MetricKind,
    /// How much; `None` is unlimited.
    pub limit: Option<u64>,
    /// What is enforced; `None`: nothing.
    pub ceiling: Option<u64>,
    /// For a counter the period, for a rate the time that the limit is per.
    pub window: Window,
    /// Of a rate.
    pub burst: Option<u64>,
    /// What happens at the limit.
    pub policy: QuotaPolicy,
    /// Percentages at which the tenant's admins are told.
    pub alert_at: Vec<u8>,
    /// Whether it goes with the plan; else it is the tenant's own.
    pub from_plan: bool,
    /// A gauge's level, or what was used of a counter in this period, as the nodes have reported; 0 for other kinds.
    pub used: u64,
    /// Of a gauge: held for work under way.
    pub reserved: u64,
    /// Of a counter: since when.
    pub period_start: Option<DateTime<Utc>>,
    /// Of a counter: until when.
    pub period_end: Option<DateTime<Utc>>,
    /// What will have been used at the end of the period, if it goes on like this.
    pub forecast: Option<u64>,
}

impl SystemTx {
    /// Gives a tenant a quota of its own, which its plan no longer changes; with its audit event. Lowering it below what is used blocks
    /// growth, and deletes nothing. Nodes follow within about a second.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid): it could not be enforced.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn set_quota(&mut self, tenant: TenantId, quota: &Quota) -> Result<bool> {
        let changed = self.put(tenant, quota, false).await?;
        if changed {
            let detail = serde_json::to_value(quota).unwrap_or_default();
            self.audit(&AuditEvent::new(self.actor().clone(), "quota.set", quota.metric.name()).with_tenant(tenant).with_detail(detail))
                .await?;
        }
        Ok(changed)
    }

    /// Gives a tenant the quotas of its plan, but for those of its own; what only a former plan gave is lifted.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid): one could not be enforced.
    ///
    /// # Cancel safety
    /// As [`set_quota`](SystemTx::set_quota).
    pub async fn entitle(&mut self, tenant: TenantId, plan: &Plan) -> Result<()> {
        for quota in plan.quotas() {
            self.put(tenant, quota, true).await?;
        }
        let metrics: Vec<&str> = plan.quotas().iter().map(|quota| quota.metric.name()).collect();
        let lift = sqlx::query("select tenancy.quota_lift($1, $2)").bind(tenant.as_uuid()).bind(metrics);
        lift.execute(&mut *self).await.map(drop).map_err(from_sqlx)
    }

    /// Lets the plan decide again; with its audit event. [Entitle](SystemTx::entitle) afterwards.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// As [`set_quota`](SystemTx::set_quota).
    pub async fn revert_quota(&mut self, tenant: TenantId, metric: Metric) -> Result<()> {
        let query = sqlx::query("select tenancy.quota_revert($1, $2)").bind(tenant.as_uuid()).bind(metric.name());
        query.execute(&mut *self).await.map_err(from_sqlx)?;
        self.audit(&AuditEvent::new(self.actor().clone(), "quota.revert", metric.name()).with_tenant(tenant)).await
    }

    /// Sets a gauge to what was counted: to begin with, or where rows were changed past it.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// As [`set_quota`](SystemTx::set_quota).
    pub async fn set_level(&mut self, tenant: TenantId, metric: Metric, level: u64) -> Result<()> {
        let level = i64::try_from(level).unwrap_or(i64::MAX);
        let query = sqlx::query("select tenancy.gauge_set($1, $2, $3)").bind(tenant.as_uuid()).bind(metric.name()).bind(level);
        query.execute(&mut *self).await.map(drop).map_err(from_sqlx)
    }

    /// Every quota of a tenant, and where it stands at `now`.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// As [`set_quota`](SystemTx::set_quota).
    pub async fn quotas(&mut self, tenant: TenantId, now: DateTime<Utc>) -> Result<Vec<QuotaState>> {
        states(self, tenant, now).await
    }

    async fn put(&mut self, tenant: TenantId, quota: &Quota, plans: bool) -> Result<bool> {
        quota.check()?;
        let signed = |units: Option<u64>| units.map(|units| i64::try_from(units).unwrap_or(i64::MAX));
        let alerts: Vec<i16> = quota.alert_at.iter().map(|percent| i16::from(*percent)).collect();
        let query = sqlx::query_scalar("select tenancy.quota_set($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
            .bind(tenant.as_uuid())
            .bind(quota.metric.name())
            .bind(quota.metric.kind().as_str())
            .bind(signed(quota.limit))
            .bind(signed(quota.ceiling()))
            .bind(quota.window.to_string())
            .bind(signed(quota.burst))
            .bind(quota.policy.to_string())
            .bind(alerts)
            .bind(plans);
        query.fetch_one(&mut *self).await.map_err(from_sqlx)
    }
}

impl TenantTx {
    /// Every quota of the tenant, and where it stands at `now`.
    ///
    /// # Errors
    /// [`Unavailable`](tenancy_core::ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn quotas(&mut self, now: DateTime<Utc>) -> Result<Vec<QuotaState>> {
        let tenant = self.tenant_id();
        states(self, tenant, now).await
    }
}

async fn states<E>(conn: &mut E, tenant: TenantId, now: DateTime<Utc>) -> Result<Vec<QuotaState>>
where
    for<'c> &'c mut E: Executor<'c, Database = Postgres>,
{
    let quotas = "select q.metric, q.kind, q.\"limit\", q.ceiling, q.\"window\", q.burst, q.policy, q.alert_at, q.from_plan, coalesce(g.used, 0) as used,
            coalesce(g.reserved, 0) as reserved
       from tenancy.quotas q left join tenancy.quota_gauges g on g.tenant_id = q.tenant_id and g.metric = q.metric where q.tenant_id = $1 order by q.metric";
    let rows = sqlx::query(quotas).bind(tenant.as_uuid()).fetch_all(&mut *conn).await.map_err(from_sqlx)?;
    let mut states = rows.iter().map(state).collect::<Result<Vec<_>>>()?;
    let counters = states.iter_mut().filter(|state| state.kind == MetricKind::Counter);
    for state in counters {
        let period = state.window.period(now);
        let used = sqlx::query_scalar("select used from tenancy.quota_counters where tenant_id = $1 and metric = $2 and period_start = $3")
            .bind(tenant.as_uuid())
            .bind(&state.metric)
            .bind(period.start);
        let used: Option<i64> = used.fetch_optional(&mut *conn).await.map_err(from_sqlx)?;
        state.used = unsigned(used).unwrap_or_default();
        state.period_start = Some(period.start);
        state.period_end = period.end;
        state.forecast = period.forecast(state.used, now);
    }
    Ok(states)
}

fn unsigned(units: Option<i64>) -> Option<u64> {
    units.map(|units| u64::try_from(units).unwrap_or_default())
}

fn state(row: &PgRow) -> Result<QuotaState> {
    let number = |column: &str| Ok(unsigned(row.try_get::<Option<i64>, _>(column).map_err(from_sqlx)?));
    let text = |column: &str| row.try_get::<&str, _>(column).map_err(from_sqlx);
    let alerts: Vec<i16> = row.try_get("alert_at").map_err(from_sqlx)?;
    Ok(QuotaState {
        metric: text("metric")?.to_owned(),
        kind: text("kind")?.parse()?,
        limit: number("limit")?,
        ceiling: number("ceiling")?,
        window: text("window")?.parse()?,
        burst: number("burst")?,
        policy: text("policy")?.parse()?,
        alert_at: alerts.into_iter().filter_map(|percent| u8::try_from(percent).ok()).collect(),
        from_plan: row.try_get("from_plan").map_err(from_sqlx)?,
        used: number("used")?.unwrap_or_default(),
        reserved: number("reserved")?.unwrap_or_default(),
        period_start: None,
        period_end: None,
        forecast: None,
    })
}
