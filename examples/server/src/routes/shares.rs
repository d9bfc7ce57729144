//! Shares between tenants, for the admins of either side: offered, accepted or declined, and ended.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tenancy_core::share::{NewShare, Perms, ResourceRef, Share};
use tenancy_core::{Result, Role, Subject, TenantCatalog as _, TenantHint, TenantId};
use tenancy_sqlx::audit::{AuditQuery, Recorded};
use tenancy_sqlx::sharing::Direction;
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use crate::app::App;
use crate::extract::{Caller, Id, NoQuery, Path, Query};
use crate::idempotency::{Answer, Command, Memory, Submitted};
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    resource: ResourceRef,
    /// The other tenant's id or slug.
    target: String,
    perms: Perms,
    #[serde(default)]
    only_roles: Option<Vec<Role>>,
    #[serde(default)]
    only_subjects: Option<Vec<Subject>>,
    #[serde(default)]
    expires_at: Option<DateTime<Utc>>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut new = NewShare::new(body.resource, named(&app, &body.target).await?, body.perms);
    (new.only_roles, new.only_subjects, new.expires_at) = (body.only_roles, body.only_subjects, body.expires_at);
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let share = tx.offer_share(&cx, &new).await?;
    let answer = Answer::created(&share, etag(share.version), format!("/api/v1/shares/{}", share.id))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

/// The tenant of this id or slug. Where there is none, an id that nobody has: the database refuses it as it does whoever accepts nothing.
async fn named(app: &App, target: &str) -> Result<TenantId> {
    let Ok(hint) = target.parse::<TenantHint>() else { return Ok(TenantId::new()) };
    Ok(app.catalog.find(&hint).await?.map_or_else(TenantId::new, |tenant| tenant.id))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    direction: Option<Side>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Side {
    #[default]
    Incoming,
    Outgoing,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(ListQuery { limit, cursor, direction }): Query<ListQuery>,
) -> Result<axum::Json<Page<Share>>, Problem> {
    cx.require(Role::Admin)?;
    let page = PageQuery::new(limit, cursor);
    let (limit, before) = (page.limit()?, page.before(List::Shares)?);
    let side = match direction.unwrap_or_default() {
        Side::Incoming => Direction::Incoming,
        Side::Outgoing => Direction::Outgoing,
    };
    let shares = app.db.read(&cx).await?.shares(side, before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(shares, limit, List::Shares, |share| share.id)))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let share = app.db.read(&cx).await?.share(*id).await?;
    let etag = etag(share.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(share)).into_response())
}

/// Accepted again, it stays accepted: this needs no `Idempotency-Key`.
pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(_): Command,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let share = tx.accept_share(&cx, *id).await?;
    tx.commit().await?;
    Ok(Answer::ok(&share, etag(share.version))?)
}

pub(super) async fn decline(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(_): Command,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let share = tx.decline_share(&cx, *id).await?;
    tx.commit().await?;
    Ok(Answer::ok(&share, etag(share.version))?)
}

/// Ends it, from either side; what has ended stays as it ended.
pub(super) async fn end(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.end_share(&cx, *id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What this side's audit log says of the share.
pub(super) async fn log(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<Page<Recorded>>, Problem> {
    cx.require(Role::Admin)?;
    let limit = page.limit()?;
    let mut query = AuditQuery::default();
    query.after = page.after(List::Audit)?;
    (query.target, query.limit) = (Some(id.to_string()), limit + 1);
    let mut tx = app.db.read(&cx).await?;
    tx.share(*id).await?;
    let events = tx.audit_log(&query).await?;
    Ok(axum::Json(Page::from_one_more(events, limit, List::Audit, |event| event.id)))
}
