//! What may be shared: by a tenant, as its admins say, and on the whole platform, as operators do.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tenancy_core::share::{Link, PlatformSharing, Share, SharingPolicy};
use tenancy_core::{Error, Result, Role, TenantId};
use tenancy_sqlx::TenantTx;
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use super::tenants::{begin, begin_about, find};
use crate::app::App;
use crate::extract::{Caller, Json, NoQuery, Path, Query};
use crate::idempotency::Answer;
use crate::operator::By;
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let policy = app.db.read(&cx).await?.sharing_policy().await?;
    let etag = etag(policy.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(policy)).into_response())
}

/// All of it: what is left out is off.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    offers: bool,
    #[serde(default)]
    accepts: bool,
    #[serde(default)]
    links: bool,
    #[serde(default)]
    types: Vec<String>,
    /// Ids: a slug would tell which tenants there are.
    #[serde(default)]
    targets: Option<Vec<TenantId>>,
    #[serde(default)]
    max_lifetime_seconds: Option<u32>,
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Wanted>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut policy = SharingPolicy::default();
    (policy.offers, policy.accepts, policy.links, policy.types) = (body.offers, body.accepts, body.links, body.types);
    (policy.targets, policy.max_lifetime_seconds) = (body.targets, body.max_lifetime_seconds);
    let mut tx = app.db.begin(&cx).await?;
    let expected = expected(&mut tx, &preconditions).await?;
    let policy = tx.set_sharing_policy(&cx, &policy, expected).await?;
    tx.commit().await?;
    Ok(Answer::ok(&policy, etag(policy.version))?)
}

/// The one version that a change may apply to, of those in `If-Match`.
async fn expected(tx: &mut TenantTx, preconditions: &Preconditions) -> Result<Option<u64>> {
    let Some(versions) = preconditions.versions() else { return Ok(None) };
    let found = tx.sharing_policy().await?.version;
    if versions.contains(&found.cast_signed()) { Ok(Some(found)) } else { Err(mismatch()) }
}

pub(super) async fn platform(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<PlatformSharing>, Problem> {
    Ok(axum::Json(begin(&app, &by, "read what may be shared").await?.platform_sharing().await?))
}

/// Counts from the next statement on, for every tenant.
pub(super) async fn put_platform(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<PlatformSharing>,
) -> Result<axum::Json<PlatformSharing>, Problem> {
    if body.max_lifetime_seconds == Some(0) {
        return Err(Error::invalid("max_lifetime_seconds", "must be at least 1, or be left out").into());
    }
    let mut tx = begin(&app, &by, "set what may be shared").await?;
    tx.set_platform_sharing(&body).await?;
    tx.commit().await?;
    Ok(axum::Json(body))
}

/// A tenant's shares in both directions, for operators.
pub(super) async fn of_tenant(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Share>>, Problem> {
    let (limit, before) = (query.limit()?, query.before(List::Shares)?);
    let tenant = find(&app, &tenant).await?;
    let shares = begin_about(&app, &by, &tenant, "read a tenant's shares").await?.shares(tenant.id, before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(shares, limit, List::Shares, |share| share.id)))
}

/// A tenant's links, for operators: whose recipients they see, and no token.
pub(super) async fn links_of_tenant(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Link>>, Problem> {
    let (limit, before) = (query.limit()?, query.before(List::Links)?);
    let tenant = find(&app, &tenant).await?;
    let links = begin_about(&app, &by, &tenant, "read a tenant's links").await?.links(tenant.id, before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(links, limit, List::Links, |link| link.id)))
}
