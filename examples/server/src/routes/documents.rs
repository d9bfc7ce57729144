//! Documents: a title and a text, in a project.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use tenancy_core::quota::Metric;
use tenancy_core::{AuditEvent, Error, Result, Role};
use tenancy_sqlx::{TenantTx, from_sqlx};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::projects::one_more;
use crate::app::{App, uncancelled};
use crate::attachment_store::discard;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query, check_line, check_text, present};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

/// The type of documents as shared resources.
pub(super) const DOCUMENT: &str = "document";

#[derive(Debug, Serialize, FromRow)]
struct Document {
    id: Uuid,
    project_id: Uuid,
    title: String,
    content: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    version: i64,
}

/// A document in a list, which leaves the content out.
#[derive(Debug, Serialize, FromRow)]
pub(super) struct Summary {
    id: Uuid,
    project_id: Uuid,
    title: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    version: i64,
}

const MAX_TITLE: usize = 200;
const MAX_CONTENT: usize = 50_000;

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(project): Path<Id>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Summary>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::Documents)?);
    let mut tx = app.db.read(&cx).await?;
    sqlx::query("select from projects where tenant_id = $1 and id = $2")
        .bind(cx.tenant_id().as_uuid())
        .bind(*project)
        .fetch_one(&mut tx)
        .await
        .map_err(from_sqlx)?;
    let documents = sqlx::query_as(
        "select id, project_id, title, created_at, updated_at, version from documents
          where tenant_id = $1 and project_id = $2 and id < $3 order by id desc limit $4",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*project)
    .bind(before)
    .bind(one_more(limit))
    .fetch_all(&mut tx)
    .await
    .map_err(from_sqlx)?;
    Ok(axum::Json(Page::from_one_more(documents, limit, List::Documents, |document: &Summary| document.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    title: String,
    #[serde(default)]
    content: String,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(project): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    check_line("title", &body.title, MAX_TITLE)?;
    check_text("content", &body.content, MAX_CONTENT)?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    // Inserts nothing where there is no such project, and keeps the one that there is from being deleted meanwhile.
    let document: Document = sqlx::query_as(
        "with project as (select id from projects where tenant_id = $1 and id = $2 for key share)
         insert into documents (tenant_id, id, project_id, title, content, created_at, updated_at)
         select $1, $3, id, $4, $5, $6, $6 from project
         returning id, project_id, title, content, created_at, updated_at, version",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*project)
    .bind(Uuid::now_v7())
    .bind(&body.title)
    .bind(&body.content)
    .bind(now)
    .fetch_one(&mut tx)
    .await
    .map_err(from_sqlx)?;
    let answer = Answer::created(&document, etag(document.version), format!("/api/v1/documents/{}", document.id))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let document: Document = sqlx::query_as(
        "select id, project_id, title, content, created_at, updated_at, version from documents where tenant_id = $1 and id = $2",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*id)
    .fetch_one(&mut app.db.read(&cx).await?)
    .await
    .map_err(from_sqlx)?;
    let etag = etag(document.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(document)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    pub(super) title: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) content: Option<String>,
}

impl Change {
    pub(super) fn check(&self) -> Result<()> {
        self.title.as_ref().map_or(Ok(()), |title| check_line("title", title, MAX_TITLE))?;
        self.content.as_ref().map_or(Ok(()), |text| check_text("content", text, MAX_CONTENT))
    }
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    body.check()?;
    let mut tx = app.db.begin(&cx).await?;
    lock(&mut tx, *id, &preconditions).await?;
    let document: Document = sqlx::query_as(
        "update documents set title = coalesce($3, title), content = coalesce($4, content), updated_at = $5, version = version + 1
          where tenant_id = $1 and id = $2 returning id, project_id, title, content, created_at, updated_at, version",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*id)
    .bind(&body.title)
    .bind(&body.content)
    .bind(app.now())
    .fetch_one(&mut tx)
    .await
    .map_err(from_sqlx)?;
    tx.commit().await?;
    Ok(Answer::ok(&document, etag(document.version))?)
}

/// Deletes the document with its attachments.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Member)?;
    let store = app.objects.scope(&cx)?;
    let mut tx = app.db.begin(&cx).await?;
    lock(&mut tx, *id, &preconditions).await?;
    let attachments: Vec<(Uuid, i64)> = sqlx::query_as("select object, size from attachments where tenant_id = $1 and document_id = $2")
        .bind(cx.tenant_id().as_uuid())
        .bind(*id)
        .fetch_all(&mut tx)
        .await
        .map_err(from_sqlx)?;
    sqlx::query("delete from documents where tenant_id = $1 and id = $2")
        .bind(cx.tenant_id().as_uuid())
        .bind(*id)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
    let mut event = AuditEvent::new(cx.principal().actor(), "document.delete", id.to_string());
    event.request_id = Some(cx.request_id());
    tx.audit(event).await?;
    let bytes: i64 = attachments.iter().map(|(_, size)| size).sum();
    tx.shrink(Metric::STORAGE, u64::try_from(bytes).unwrap_or_default()).await?;
    let objects = attachments.into_iter().map(|(object, _)| object).collect();
    uncancelled(async move {
        tx.commit().await?;
        discard(&store, objects).await;
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Locks the document against every change, also of its attachments, if it is there and of a version that the caller expects.
pub(super) async fn lock(tx: &mut TenantTx, id: Uuid, preconditions: &Preconditions) -> Result<()> {
    let query = sqlx::query_scalar("select version from documents where tenant_id = $1 and id = $2 for update");
    let version: Option<i64> = query.bind(tx.tenant_id().as_uuid()).bind(id).fetch_optional(tx).await.map_err(from_sqlx)?;
    match (version, preconditions.versions()) {
        (None, _) => Err(Error::not_found()),
        (Some(version), Some(expected)) if !expected.contains(&version) => Err(mismatch()),
        _ => Ok(()),
    }
}
