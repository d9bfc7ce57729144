//! Backups of tenants, for operators: taken, looked at, restored, held and let go.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, ETAG};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::backup::Schedule;
use tenancy_core::{Error, Result};
use tenancy_sqlx::SystemTx;
use tenancy_sqlx::backup::{Backup, BackupLink, NewClone, NewRestore, Standing};
use tenancy_sqlx::operations::Operation;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::lifecycle::{queued, sent};
use super::tenants::{begin_about, find};
use crate::app::{App, uncancelled};
use crate::edge::RequestId;
use crate::extract::{Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Command, Submitted};
use crate::operator::By;
use crate::page::Page;

/// Where a link to an archive leads.
const DOWNLOADS: &str = "/downloads/";
/// How many backups are listed: retention keeps them few.
const MOST: i64 = 200;

/// Queues a backup.
pub(super) async fn take(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Command(once): Command,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_backup(id, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "back up a tenant", what).await?)
}

/// Queues a restoration, or with `"dry_run": true` only the comparison.
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Submitted { body, once }: Submitted<NewRestore>,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_restore(id, &body, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "restore a tenant", what).await?)
}

/// Queues the making of another tenant of a backup.
pub(super) async fn clone(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Submitted { body, once }: Submitted<NewClone>,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_clone(id, &body, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "clone a tenant", what).await?)
}

/// Queues the proof that the newest backup can be restored.
pub(super) async fn drill(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Command(once): Command,
) -> Result<Answer, Problem> {
    let what = async |tx: &mut SystemTx, id| tx.request_drill(id, None, Some(request_id)).await;
    Ok(queued(&app, &by, &tenant, &once, "drill a tenant's restoration", what).await?)
}

/// The latest, the newest first.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Backup>>, Problem> {
    let found = find(&app, &tenant).await?;
    let items = begin_about(&app, &by, &found, "list backups").await?.backups(found.id, None, MOST).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

fn id(backup: &str) -> Result<Uuid> {
    backup.parse().map_err(|_| Error::not_found())
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path((tenant, backup)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Backup>, Problem> {
    let found = find(&app, &tenant).await?;
    Ok(axum::Json(begin_about(&app, &by, &found, "show a backup").await?.backup(found.id, id(&backup)?).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hold {
    /// Null lets it go again.
    #[serde(default, deserialize_with = "present")]
    hold: Option<Option<String>>,
}

pub(super) async fn hold(
    State(app): State<Arc<App>>,
    by: By,
    Path((tenant, backup)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(Hold { hold }): Json<Hold>,
) -> Result<axum::Json<Backup>, Problem> {
    let hold = hold.ok_or_else(|| Error::invalid("hold", "must say why the backup is kept, or be null"))?;
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "hold a backup").await?;
    let held = tx.hold_backup(found.id, id(&backup)?, hold.as_deref()).await?;
    uncancelled(tx.commit()).await?;
    Ok(axum::Json(held))
}

#[derive(Debug, Serialize)]
pub(super) struct Link {
    url: String,
    #[serde(flatten)]
    link: BackupLink,
}

/// Makes a link that opens the archive for a short time, for whoever has it.
pub(super) async fn link(
    State(app): State<Arc<App>>,
    by: By,
    Path((tenant, backup)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<(StatusCode, axum::Json<Link>), Problem> {
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "make a link to a backup").await?;
    let link = app.backups.link(&mut tx, found.id, id(&backup)?).await?;
    uncancelled(tx.commit()).await?;
    let url = app.link(&found.slug, DOWNLOADS)?.with(link.token.expose());
    Ok((StatusCode::CREATED, axum::Json(Link { url, link })))
}

/// The archive that a link opens.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let (backup, archive) = app.backups.open_link(&token).await?;
    let headers = [(ETAG, format!("\"{}\"", backup.hash)), (CACHE_CONTROL, "private, no-store".to_owned())];
    let disposition = format!("attachment; filename=\"{}.tenancy\"", backup.id);
    Ok((headers, sent(archive, "application/octet-stream", disposition)).into_response())
}

/// When the tenant is backed up by itself, and where that stands.
pub(super) async fn schedule(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Standing>, Problem> {
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "show a backup schedule").await?;
    Ok(axum::Json(app.backups.standing(&mut tx, found.id).await?))
}

pub(super) async fn put_schedule(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(schedule): Json<Schedule>,
) -> Result<axum::Json<Standing>, Problem> {
    Ok(axum::Json(scheduled(&app, &by, &tenant, Some(&schedule)).await?))
}

/// Back to that of all tenants that have none.
pub(super) async fn remove_schedule(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Standing>, Problem> {
    Ok(axum::Json(scheduled(&app, &by, &tenant, None).await?))
}

async fn scheduled(app: &App, by: &By, tenant: &str, schedule: Option<&Schedule>) -> Result<Standing> {
    let found = find(app, tenant).await?;
    let mut tx = begin_about(app, by, &found, "schedule backups").await?;
    tx.set_backup_schedule(found.id, schedule).await?;
    let standing = app.backups.standing(&mut tx, found.id).await?;
    uncancelled(tx.commit()).await?;
    Ok(standing)
}

/// The latest drills with their reports, the newest first.
pub(super) async fn drills(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Operation>>, Problem> {
    let found = find(&app, &tenant).await?;
    let items = begin_about(&app, &by, &found, "list drills").await?.drills(found.id).await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    by: By,
    Path((tenant, backup)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "delete a backup").await?;
    tx.delete_backup(found.id, id(&backup)?).await?;
    uncancelled(tx.commit()).await?;
    Ok(StatusCode::NO_CONTENT)
}
