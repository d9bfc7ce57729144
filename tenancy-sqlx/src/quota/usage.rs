//! What was used, over time.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{Executor, Postgres};
use tenancy_core::quota::{Metric, MetricKind};
use tenancy_core::{Error, Result, TenantId};

use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

/// How long one point of a series is, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolution {
    /// Kept for a few months: see [`MeterOptions::with_retention`](super::MeterOptions::with_retention).
    Minute,
    /// Kept for a few years.
    Hour,
    /// Kept for ever.
    Day,
}

/// One point of a series: of a counter what was used in it, of a gauge its last level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Point {
    /// When it begins.
    pub at: DateTime<Utc>,
    /// In units of the metric.
    pub value: u64,
}

/// The most points that one call returns.
const MOST: i64 = 10_000;

impl TenantTx {
    /// The tenant's use of `metric` from `from` until before `to`: a point for each minute, hour or day in which something changed, oldest
    /// first. The latest minutes are as the nodes have reported, about a second ago.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid): more than 10,000 points; take a shorter range or a coarser resolution.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn usage(&mut self, metric: Metric, from: DateTime<Utc>, to: DateTime<Utc>, by: Resolution) -> Result<Vec<Point>> {
        let tenant = self.tenant_id();
        series(&mut *self, tenant, metric, from, to, by).await
    }
}

impl SystemTx {
    /// A tenant's use of `metric`: as [`TenantTx::usage`].
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn usage(&mut self, of: TenantId, metric: Metric, from: DateTime<Utc>, to: DateTime<Utc>, by: Resolution) -> Result<Vec<Point>> {
        series(&mut *self, of, metric, from, to, by).await
    }
}

/// What was rolled up comes from there; what was not yet, from the minutes.
const HOURS: &str = "with rolled as (select until from tenancy.usage_rolled where resolution = 'hour')
    select h.at, h.value from tenancy.usage_hours h, rolled where h.tenant_id = $1 and h.metric = $2 and h.at >= $3 and h.at < $4 and h.at < rolled.until
    union all
    select date_trunc('hour', u.at, 'UTC'), case when $6 then (array_agg(u.value order by u.at desc))[1] else sum(u.value)::bigint end
      from tenancy.usage u, rolled where u.tenant_id = $1 and u.metric = $2 and u.at >= greatest($3, rolled.until) and u.at < $4 group by 1 order by 1 limit $5";
const DAYS: &str = "with rolled as (select until from tenancy.usage_rolled where resolution = 'day')
    select d.at, d.value from tenancy.usage_days d, rolled where d.tenant_id = $1 and d.metric = $2 and d.at >= $3 and d.at < $4 and d.at < rolled.until
    union all
    select date_trunc('day', u.at, 'UTC'), case when $6 then (array_agg(u.value order by u.at desc))[1] else sum(u.value)::bigint end
      from tenancy.usage u, rolled where u.tenant_id = $1 and u.metric = $2 and u.at >= greatest($3, rolled.until) and u.at < $4 group by 1 order by 1 limit $5";
const MINUTES: &str = "select u.at, u.value from tenancy.usage u where u.tenant_id = $1 and u.metric = $2 and u.at >= $3 and u.at < $4 and $6 is not null order by 1 limit $5";

async fn series<'c, E>(conn: E, tenant: TenantId, metric: Metric, from: DateTime<Utc>, to: DateTime<Utc>, by: Resolution) -> Result<Vec<Point>>
where
    E: Executor<'c, Database = Postgres>,
{
    let sql = match by {
        Resolution::Minute => MINUTES,
        Resolution::Hour => HOURS,
        Resolution::Day => DAYS,
    };
    let query = sqlx::query_as(sql).bind(tenant.as_uuid()).bind(metric.name()).bind(from).bind(to).bind(MOST + 1);
    let points: Vec<(DateTime<Utc>, i64)> = query.bind(metric.kind() == MetricKind::Gauge).fetch_all(conn).await.map_err(from_sqlx)?;
    if i64::try_from(points.len()).is_ok_and(|found| found > MOST) {
        return Err(Error::invalid("from", format!("must be later: there are more than {MOST} points; or ask for hours or days")));
    }
    Ok(points.into_iter().map(|(at, value)| Point { at, value: u64::try_from(value).unwrap_or_default() }).collect())
}
