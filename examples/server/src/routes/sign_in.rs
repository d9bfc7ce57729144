//! Becoming a member and signing in, with what came by mail: both end with a session.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::{
    ActiveTenant, Email, Error, ErrorKind, Member, Principal, Result, Tenant, TenantCatalog as _, TenantContext, TenantHint, TenantId,
    TenantSlug,
};
use tenancy_sqlx::sign_in::{Session, no_good};
use tenancy_tower::axum::Problem;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::app::App;
use crate::cross_site;
use crate::edge::RequestId;
use crate::extract::{Json, NoQuery, Query};
use crate::signed_in::set_cookie;

/// Where a link to sign in with leads.
pub(super) const PAGE: &str = "/sign-in/";

/// What a mailed token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Invite,
    SignIn,
}

impl Door {
    /// The tenant that the token opens, if it does. Nothing is used up.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), in the same words whatever is wrong with the token; [`TenantInactive`](ErrorKind::TenantInactive).
    pub(super) async fn tenant(self, app: &App, token: &str) -> Result<ActiveTenant> {
        let found = match self {
            Self::Invite => app.db.find_invite(token).await?,
            Self::SignIn => app.db.find_sign_in(token).await?,
        };
        let tenant = app.catalog.find(&found.ok_or_else(no_good)?.into()).await?;
        tenant.ok_or_else(no_good)?.into_active()
    }

    /// Uses the token up, and begins a session.
    ///
    /// # Errors
    /// As [`tenant`](Self::tenant); for an invite [`QuotaExceeded`](ErrorKind::QuotaExceeded) and [`Conflict`](ErrorKind::Conflict).
    pub(super) async fn enter(self, app: &App, token: &str, request_id: Uuid) -> Result<(Entered, HeaderValue)> {
        let cx = TenantContext::establish(self.tenant(app, token).await?, Principal::Visitor).with_request_id(request_id);
        let mut tx = app.db.begin(&cx).await?;
        let member = match self {
            Self::Invite => tx.accept_invite(token).await?,
            Self::SignIn => tx.accept_sign_in(token).await?,
        };
        let (session, secret) = tx.start_session(member.id, app.session_ttl, app.now()).await?;
        tx.commit().await?;
        let (tenant, cookie) = (cx.tenant(), set_cookie(&secret, app.session_ttl)?);
        Ok((Entered { tenant: Place { id: tenant.id, slug: tenant.slug.clone(), name: tenant.name.clone() }, member, session }, cookie))
    }
}

/// Who one is now.
#[derive(Debug, Serialize)]
pub(super) struct Entered {
    tenant: Place,
    member: Member,
    session: Session,
}

#[derive(Debug, Serialize)]
struct Place {
    id: TenantId,
    slug: TenantSlug,
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    tenant: String,
    email: String,
}

/// Has a link sent, if there is such a member. The answer is the same, and as fast, if there is not: the work is done after it.
pub(super) async fn request(
    State(app): State<Arc<App>>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<Asked>,
) -> Result<Response, Problem> {
    let hint: TenantHint = body.tenant.parse().map_err(|_| Error::invalid("tenant", "must be the slug or the id of a tenant"))?;
    let email: Email = body.email.parse()?;
    let busy = |_| Error::new(ErrorKind::Unavailable, "too many ask for links at once: try again later");
    let turn = Arc::clone(&app.link_requests).try_acquire_owned().map_err(busy)?;
    let work = async move {
        if let Err(error) = send(&app, &hint, &email, request_id).await {
            tracing::warn!(?error, "a link to sign in with was not sent");
        }
        drop(turn);
    };
    drop(tokio::spawn(work.in_current_span()));
    Ok((StatusCode::ACCEPTED, axum::Json(serde_json::json!({ "status": "accepted" }))).into_response())
}

async fn send(app: &App, hint: &TenantHint, email: &Email, request_id: Uuid) -> Result<()> {
    let Some(Ok(tenant)) = app.catalog.find(hint).await?.map(Tenant::into_active) else { return Ok(()) };
    let link = app.link(&tenant.slug, PAGE)?;
    let cx = TenantContext::establish(tenant, Principal::Visitor).with_request_id(request_id);
    let mut tx = app.db.begin(&cx).await?;
    tx.request_sign_in(email, &link, app.now()).await?;
    tx.commit().await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Presented {
    token: String,
}

pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    Json(body): Json<Presented>,
) -> Result<Response, Problem> {
    entered(&app, Door::SignIn, &headers, &body.token, id).await
}

pub(super) async fn accept_invite(
    State(app): State<Arc<App>>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    Json(body): Json<Presented>,
) -> Result<Response, Problem> {
    entered(&app, Door::Invite, &headers, &body.token, id).await
}

async fn entered(app: &App, door: Door, headers: &HeaderMap, token: &str, request_id: Uuid) -> Result<Response, Problem> {
    // Nobody is signed in as somebody else by a page elsewhere.
    cross_site::refuse_cross(headers)?;
    let (entered, cookie) = door.enter(app, token, request_id).await?;
    Ok(([(SET_COOKIE, cookie)], axum::Json(entered)).into_response())
}
