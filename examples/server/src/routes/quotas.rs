//! Quotas and usage: every tenant's for operators, its own for a tenant's admins.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use tenancy_core::quota::{Metric, MetricKind, Quota, QuotaPolicy, Window};
use tenancy_core::{Error, Result, Role, Tenant};
use tenancy_sqlx::quota::{Point, QuotaState, Resolution};
use tenancy_tower::axum::Problem;

use super::tenants::{begin_about, find};
use crate::app::App;
use crate::extract::{Caller, Json, NoQuery, Path, Query};
use crate::operator::By;
use crate::plans::{entitle, plans};

#[derive(Debug, Serialize)]
pub(super) struct Quotas {
    items: Vec<QuotaState>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Quotas>, Problem> {
    let tenant = find(&app, &tenant).await?;
    let items = begin_about(&app, &by, &tenant, "read a tenant's quotas").await?.quotas(tenant.id, app.now()).await?;
    Ok(axum::Json(Quotas { items }))
}

pub(super) async fn own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Quotas>, Problem> {
    cx.require(Role::Admin)?;
    let items = app.db.read(&cx).await?.quotas(app.now()).await?;
    Ok(axum::Json(Quotas { items }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    quotas: Vec<WantedQuota>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedQuota {
    metric: String,
    /// `null` is unlimited; absent only where the plan decides.
    #[serde(default, deserialize_with = "also_null")]
    limit: Option<Option<u64>>,
    window: Option<Window>,
    policy: Option<QuotaPolicy>,
    burst: Option<u64>,
    alert_at: Option<Vec<u8>>,
    #[serde(default)]
    from_plan: bool,
}

fn also_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Sets the quotas that are named, and leaves the others.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Wanted>,
) -> Result<axum::Json<Quotas>, Problem> {
    let tenant = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &tenant, "set a tenant's quotas").await?;
    for (at, wanted) in body.quotas.iter().enumerate() {
        let place = |error: Error| match error.field() {
            Some(field) => Error::invalid(format!("quotas[{at}].{field}"), error.message().to_owned()),
            None => error,
        };
        let metric = plans().metric(&wanted.metric).map_err(place)?;
        if wanted.from_plan {
            if wanted.limit.is_some() {
                return Err(place(Error::invalid("limit", "must be left out where the plan decides")).into());
            }
            tx.revert_quota(tenant.id, metric).await?;
            entitle(&mut tx, tenant.id, &tenant.plan).await?;
        } else {
            let quota = wanted.quota(metric, &tenant).map_err(place)?;
            tx.set_quota(tenant.id, &quota).await.map_err(place)?;
        }
    }
    let items = tx.quotas(tenant.id, app.now()).await?;
    tx.commit().await?;
    // This node follows at once, the others within a second.
    if let Err(error) = app.meter.refresh(tenant.id).await {
        tracing::warn!(?error, "the quotas were not refreshed after a change");
    }
    Ok(axum::Json(Quotas { items }))
}

impl WantedQuota {
    /// What is not said is as in the tenant's plan.
    fn quota(&self, metric: Metric, tenant: &Tenant) -> Result<Quota> {
        let limit = self.limit.ok_or_else(|| Error::invalid("limit", "must be a number, or null for unlimited"))?;
        let of_plan = plans().plan(&tenant.plan).ok().and_then(|plan| plan.quotas().iter().find(|quota| quota.metric == metric).cloned());
        let mut quota = of_plan.unwrap_or_else(|| match metric.kind() {
            MetricKind::Counter => Quota::unlimited(metric).per(Window::MONTH),
            MetricKind::Rate => Quota::unlimited(metric).per(Window::Fixed { seconds: 1 }),
            _ => Quota::unlimited(metric),
        });
        quota.limit = limit;
        quota.window = self.window.clone().unwrap_or(quota.window);
        quota.policy = self.policy.unwrap_or(quota.policy);
        quota.burst = self.burst.or_else(|| quota.burst.filter(|_| limit.is_some()));
        quota.alert_at = self.alert_at.clone().unwrap_or(quota.alert_at);
        quota.check()?;
        Ok(quota)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    metric: String,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    resolution: Option<Resolution>,
    format: Option<Format>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Csv,
}

/// What is asked for, with what was not said.
#[derive(Clone, Copy)]
struct Asked {
    metric: Metric,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    resolution: Resolution,
    format: Format,
}

impl UsageQuery {
    fn asked(self, now: DateTime<Utc>) -> Result<Asked> {
        let metric = plans().metric(&self.metric)?;
        if !matches!(metric.kind(), MetricKind::Counter | MetricKind::Gauge) {
            return Err(Error::invalid("metric", "must be one that is counted: rates and concurrency have no usage"));
        }
        let resolution = self.resolution.unwrap_or(Resolution::Hour);
        let to = self.to.unwrap_or(now);
        let back = match resolution {
            Resolution::Minute => TimeDelta::hours(3),
            Resolution::Hour => TimeDelta::days(7),
            Resolution::Day => TimeDelta::days(90),
        };
        let from = self.from.unwrap_or(to - back);
        if from >= to {
            return Err(Error::invalid("from", "must be before `to`"));
        }
        Ok(Asked { metric, from, to, resolution, format: self.format.unwrap_or_default() })
    }
}

#[derive(Debug, Serialize)]
struct Usage {
    metric: Metric,
    unit: &'static str,
    resolution: Resolution,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    /// Where the quota stands now.
    quota: Option<QuotaState>,
    items: Vec<Point>,
}

pub(super) async fn usage(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Problem> {
    let tenant = find(&app, &tenant).await?;
    let now = app.now();
    let asked = query.asked(now)?;
    let mut tx = begin_about(&app, &by, &tenant, "read a tenant's usage").await?;
    let items = tx.usage(tenant.id, asked.metric, asked.from, asked.to, asked.resolution).await?;
    let quotas = tx.quotas(tenant.id, now).await?;
    Ok(answer(asked, items, quotas))
}

pub(super) async fn own_usage(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let now = app.now();
    let asked = query.asked(now)?;
    let mut tx = app.db.read(&cx).await?;
    let items = tx.usage(asked.metric, asked.from, asked.to, asked.resolution).await?;
    let quotas = tx.quotas(now).await?;
    Ok(answer(asked, items, quotas))
}

fn answer(asked: Asked, items: Vec<Point>, quotas: Vec<QuotaState>) -> Response {
    let Asked { metric, from, to, resolution, format } = asked;
    if format == Format::Json {
        let quota = quotas.into_iter().find(|quota| quota.metric == metric.name());
        return axum::Json(Usage { metric, unit: metric.unit(), resolution, from, to, quota, items }).into_response();
    }
    let csv = items.iter().fold(format!("at,{}\r\n", metric.unit()), |mut csv, point| {
        let _ = write!(csv, "{},{}\r\n", point.at.format("%Y-%m-%dT%H:%M:%SZ"), point.value);
        csv
    });
    let name = format!("attachment; filename=\"usage-{metric}.csv\"");
    ([(CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()), (CONTENT_DISPOSITION, name)], csv).into_response()
}
