//! Which tenants keep a journal of their rows' changes, for operators.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tenancy_tower::axum::Problem;

use super::tenants::{begin_about, find};
use crate::app::{App, uncancelled};
use crate::extract::{Json, NoQuery, Path, Query};
use crate::operator::By;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Window {
    window_days: u16,
}

/// Has one kept for so many days.
pub(super) async fn keep(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(Window { window_days }): Json<Window>,
) -> Result<StatusCode, Problem> {
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "keep a tenant's journal").await?;
    tx.keep_journal(found.id, window_days).await?;
    uncancelled(tx.commit()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps none any more.
pub(super) async fn end(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "end a tenant's journal").await?;
    tx.end_journal(found.id).await?;
    uncancelled(tx.commit()).await?;
    Ok(StatusCode::NO_CONTENT)
}
