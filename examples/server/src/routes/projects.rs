//! Projects: what a tenant's documents are kept in.

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

use crate::app::{App, uncancelled};
use crate::attachment_store::discard;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query, check_line, check_text, present};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

#[derive(Debug, Serialize, FromRow)]
pub(super) struct Project {
    id: Uuid,
    name: String,
    description: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    version: i64,
}

const MAX_NAME: usize = 200;
const MAX_DESCRIPTION: usize = 4_000;

// Row-level security confines these queries without their `tenant_id = $1`. It is there for the planner, which then knows how many
// rows the tenant has.

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Project>>, Problem> {
    cx.require(Role::Viewer)?;
    let limit = query.limit()?;
    let projects = sqlx::query_as(
        "select id, name, description, created_at, updated_at, version from projects
          where tenant_id = $1 and id < $2 order by id desc limit $3",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(query.before(List::Projects)?)
    .bind(one_more(limit))
    .fetch_all(&mut app.db.read(&cx).await?)
    .await
    .map_err(from_sqlx)?;
    Ok(axum::Json(Page::from_one_more(projects, limit, List::Projects, |project: &Project| project.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    name: String,
    #[serde(default)]
    description: String,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    check_line("name", &body.name, MAX_NAME)?;
    check_text("description", &body.description, MAX_DESCRIPTION)?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let project: Project = sqlx::query_as(
        "insert into projects (tenant_id, id, name, description, created_at, updated_at) values ($1, $2, $3, $4, $5, $5)
         returning id, name, description, created_at, updated_at, version",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(Uuid::now_v7())
    .bind(&body.name)
    .bind(&body.description)
    .bind(now)
    .fetch_one(&mut tx)
    .await
    .map_err(from_sqlx)?;
    let answer = Answer::created(&project, etag(project.version), format!("/api/v1/projects/{}", project.id))?;
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
    let project: Project =
        sqlx::query_as("select id, name, description, created_at, updated_at, version from projects where tenant_id = $1 and id = $2")
            .bind(cx.tenant_id().as_uuid())
            .bind(*id)
            .fetch_one(&mut app.db.read(&cx).await?)
            .await
            .map_err(from_sqlx)?;
    let etag = etag(project.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(project)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    description: Option<String>,
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
    body.name.as_ref().map_or(Ok(()), |name| check_line("name", name, MAX_NAME))?;
    body.description.as_ref().map_or(Ok(()), |text| check_text("description", text, MAX_DESCRIPTION))?;
    let mut tx = app.db.begin(&cx).await?;
    lock(&mut tx, *id, &preconditions).await?;
    let project: Project = sqlx::query_as(
        "update projects set name = coalesce($3, name), description = coalesce($4, description), updated_at = $5, version = version + 1
          where tenant_id = $1 and id = $2 returning id, name, description, created_at, updated_at, version",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*id)
    .bind(&body.name)
    .bind(&body.description)
    .bind(app.now())
    .fetch_one(&mut tx)
    .await
    .map_err(from_sqlx)?;
    tx.commit().await?;
    Ok(Answer::ok(&project, etag(project.version))?)
}

/// Deletes the project with all that is in it.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let store = app.objects.scope(&cx)?;
    let mut tx = app.db.begin(&cx).await?;
    lock(&mut tx, *id, &preconditions).await?;
    // With the project locked no document is added, and with the documents locked no attachment.
    sqlx::query("select id from documents where tenant_id = $1 and project_id = $2 order by id for update")
        .bind(cx.tenant_id().as_uuid())
        .bind(*id)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
    let attachments: Vec<(Uuid, i64)> = sqlx::query_as(
        "select a.object, a.size from attachments a join documents d on d.tenant_id = a.tenant_id and d.id = a.document_id
          where d.tenant_id = $1 and d.project_id = $2",
    )
    .bind(cx.tenant_id().as_uuid())
    .bind(*id)
    .fetch_all(&mut tx)
    .await
    .map_err(from_sqlx)?;
    sqlx::query("delete from projects where tenant_id = $1 and id = $2")
        .bind(cx.tenant_id().as_uuid())
        .bind(*id)
        .execute(&mut tx)
        .await
        .map_err(from_sqlx)?;
    let mut event = AuditEvent::new(cx.principal().actor(), "project.delete", id.to_string());
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

/// Locks the project against every change, if it is there and of a version that the caller expects.
async fn lock(tx: &mut TenantTx, id: Uuid, preconditions: &Preconditions) -> Result<()> {
    let query = sqlx::query_scalar("select version from projects where tenant_id = $1 and id = $2 for update");
    let version: Option<i64> = query.bind(tx.tenant_id().as_uuid()).bind(id).fetch_optional(tx).await.map_err(from_sqlx)?;
    match (version, preconditions.versions()) {
        (None, _) => Err(Error::not_found()),
        (Some(version), Some(expected)) if !expected.contains(&version) => Err(mismatch()),
        _ => Ok(()),
    }
}

/// How many rows to fetch to know whether there is a page after one of `limit`.
pub(super) fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1)
}
