//! Long work on tenants, for operators: provisioning, export, erasure, and how they go on.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use object_store::GetResult;
use serde::Deserialize;
use serde_json::Value;
use tenancy_core::{Error, Result, TenantId};
use tenancy_sqlx::SystemTx;
use tenancy_sqlx::export::NewExport;
use tenancy_sqlx::operations::Operation;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::tenants::{begin, begin_about, find};
use crate::app::{App, uncancelled};
use crate::edge::RequestId;
use crate::extract::{NoQuery, Path, Query};
use crate::idempotency::{Answer, Command, Memory, Once, Perhaps, Submitted};
use crate::operator::By;
use crate::page::Page;
use crate::plans::plans;

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

/// Queues the provisioning of a tenant that was created for it, or whose last one failed.
pub(super) async fn provision(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Command(once): Command,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_provisioning(id, plans(), Value::Null, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "provision a tenant", what).await?)
}

/// Queues the export of a tenant's rows and objects.
pub(super) async fn export(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Perhaps { body, once }: Perhaps<NewExport>,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_export(id, &body, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "export a tenant", what).await?)
}

/// Queues long work on a tenant that is there, once per key.
pub(super) async fn queued(
    app: &App,
    by: &By,
    tenant: &str,
    once: &Once,
    reason: &str,
    queue: impl AsyncFnOnce(&mut SystemTx, TenantId) -> Result<Operation>,
) -> Result<Answer> {
    let found = find(app, tenant).await?;
    let (mut tx, now) = (begin_about(app, by, &found, reason).await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let operation = queue(&mut tx, found.id).await?;
    let answer = Answer::accepted(&operation, format!("/api/v1/operations/{}", operation.id))?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

/// A file of an export: `manifest.json` names the others.
pub(super) async fn file(
    State(app): State<Arc<App>>,
    by: By,
    Path((operation, file)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let id: Uuid = operation.parse().map_err(|_| Error::not_found())?;
    let operation = begin(&app, &by, "download a file of an export").await?.operation(id).await?;
    let content = app.exports.file(&operation, &file).await?;
    let kind = match file.rsplit_once('.') {
        Some(("manifest", "json")) => "application/json",
        Some((_, "ndjson")) => "application/x-ndjson",
        Some((table, "csv")) if !table.starts_with("objects/") => "text/csv; charset=utf-8; header=present",
        _ => "application/octet-stream",
    };
    Ok(sent(content, kind, "attachment".to_owned()))
}

/// A file as an attachment of exactly this type: it is never shown as a page of this origin.
pub(super) fn sent(content: GetResult, kind: &str, disposition: String) -> Response {
    let headers = [
        (CONTENT_TYPE, kind.to_owned()),
        (CONTENT_LENGTH, content.meta.size.to_string()),
        (CONTENT_DISPOSITION, disposition),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
    ];
    (headers, Body::from_stream(content.into_stream())).into_response()
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path(operation): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Operation>, Problem> {
    let id: Uuid = operation.parse().map_err(|_| Error::not_found())?;
    let operation = begin(&app, &by, "show an operation").await?.operation(id).await?;
    if operation.is_over() {
        app.catch_up().await; // who reads so is served here what it left
    }
    Ok(axum::Json(operation))
}

/// Calls an operation off.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    by: By,
    Path(operation): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<(StatusCode, axum::Json<Operation>), Problem> {
    let id: Uuid = operation.parse().map_err(|_| Error::not_found())?;
    let mut tx = begin(&app, &by, "cancel an operation").await?;
    let cancelled = tx.cancel_operation(id).await?;
    uncancelled(tx.commit()).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(cancelled)))
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
    app.catch_up().await;
    Ok(axum::Json(Page { items, next_cursor: None }))
}
