//! Long work on tenants, for operators: erasure, and how it goes on.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use serde::Deserialize;
use tenancy_core::{Error, Result};
use tenancy_sqlx::operations::Operation;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::tenants::{begin, find};
use crate::app::App;
use crate::edge::RequestId;
use crate::extract::{NoQuery, Path, Query};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::operator::By;
use crate::page::Page;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Erasure {
    confirm: String,
    reason: String,
}

/// Queues the erasure of an archived tenant. There is no way back from it.
pub(super) async fn erase(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Submitted { body, once }: Submitted<Erasure>,
) -> Result<Answer, Problem> {
    let (mut tx, now) = (begin(&app, &by, "erase a tenant").await?, app.now());
    let by = tx.actor().clone();
    // First: when the request is sent again, the tenant may be gone.
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let found = find(&app, &tenant).await?;
    if body.confirm != found.slug.as_str() {
        return Err(Error::invalid("confirm", "must be the slug of the tenant that is to be erased").into());
    }
    let operation = tx.request_erasure(found.id, &body.reason, Some(request_id)).await?;
    let answer = Answer::accepted(&operation, format!("/api/v1/operations/{}", operation.id))?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path(operation): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Operation>, Problem> {
    let id: Uuid = operation.parse().map_err(|_| Error::not_found())?;
    Ok(axum::Json(begin(&app, &by, "show an operation").await?.operation(id).await?))
}

/// The latest hundred, the newest first.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Operation>>, Problem> {
    let found = find(&app, &tenant).await?;
    let items = begin(&app, &by, "list operations").await?.operations(found.id).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}
