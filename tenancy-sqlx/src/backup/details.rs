//! What a backup's manifest says beside the segments.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::types::Json;
use tenancy_core::Result;
use tenancy_core::config::Layer;

use super::journal::{self, Point};
use super::tables::Table;
use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How the tenant was, and its tables.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) taken_at: DateTime<Utc>,
    pub(super) server: String,
    pub(super) tenant: Was,
    /// In the order of the segments.
    pub(super) tables: Vec<Table>,
    pub(super) objects: Counted,
    /// Where it is in the tenant's journal, where that keeps one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) journal: Option<Point>,
}

/// The tenant as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Was {
    pub(super) name: String,
    pub(super) plan: String,
    pub(super) branding: Map<String, Value>,
    pub(super) flags: Map<String, Value>,
    pub(super) settings: Layer,
    /// What its gauges measured.
    pub(super) gauges: BTreeMap<String, i64>,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

type Row = (DateTime<Utc>, String, String, String, Value, Value, Json<Layer>, Value);

/// Reads it, as part of the snapshot: `tenant` is a literal of ours.
pub(super) async fn read(tx: &mut SystemTx, tenant: uuid::Uuid) -> Result<(DateTime<Utc>, String, Was, Option<Point>)> {
    let query = sqlx::query_as(
        "select now(), current_setting('server_version'), t.name, t.plan, t.branding, t.flags,
                (select coalesce(jsonb_object_agg(c.key, c.value), '{}') from tenancy.tenant_configs c where c.tenant_id = t.id),
                (select coalesce(jsonb_object_agg(g.metric, g.used), '{}') from tenancy.quota_gauges g where g.tenant_id = t.id)
           from tenancy.tenants t where t.id = $1",
    );
    let (taken_at, server, name, plan, branding, flags, Json(settings), gauges): Row =
        query.bind(tenant).fetch_one(&mut *tx).await.map_err(from_sqlx)?;
    let object = |value: Value| value.as_object().cloned().unwrap_or_default();
    let gauges = object(gauges).into_iter().filter_map(|(metric, used)| Some((metric, used.as_i64()?))).collect();
    let was = Was { name, plan, branding: object(branding), flags: object(flags), settings, gauges };
    Ok((taken_at, server, was, journal::point(tx, tenant).await?))
}
