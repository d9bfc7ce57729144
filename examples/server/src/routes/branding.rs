//! How a tenant's service looks: for everybody who comes to its host, and for its admins to change.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, ETAG, HOST, HeaderName, VARY};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use tenancy_core::branding::Branding;
use tenancy_core::{Result, Role};
use tenancy_tower::axum::Problem;

use super::config::commit_own;
use crate::app::App;
use crate::extract::{Caller, Json, NoQuery, Query};
use crate::idempotency::Answer;
use crate::logo::Logo;
use crate::precondition::{Preconditions, etag};

/// What is told of the branding.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    branding: Branding,
    logo: Option<ShownLogo>,
}

/// Where the logo is, and how large.
#[derive(Debug, Serialize)]
struct ShownLogo {
    url: &'static str,
    sha256: String,
    width: u32,
    height: u32,
}

impl Shown {
    pub(super) fn of(object: &Map<String, Value>) -> Self {
        let logo =
            Logo::read(object).map(|Logo { sha256, width, height, .. }| ShownLogo { url: "/api/v1/branding/logo", sha256, width, height });
        Self { branding: Branding::read(object), logo }
    }
}

/// Browsers ask again soon, and get 304 where nothing has changed. One address shows another tenant to another host or token.
pub(super) fn caching(etag: String) -> [(HeaderName, String); 3] {
    [(ETAG, etag), (CACHE_CONTROL, "private, max-age=5".to_owned()), (VARY, format!("{AUTHORIZATION}, {HOST}"))]
}

pub(super) async fn show(Caller(cx): Caller, Query(NoQuery {}): Query<NoQuery>, preconditions: Preconditions) -> Result<Response, Problem> {
    let tenant = cx.tenant();
    let tag = etag(tenant.version);
    let fresh = preconditions.not_modified(&tag);
    let headers = caching(tag);
    if fresh {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    Ok((headers, axum::Json(Shown::of(&tenant.branding))).into_response())
}

/// All of it: what is not named is not set afterwards. The logo has a path of its own.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Map<String, Value>>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let wanted = Branding::parse(&body)?;
    Ok(change(&app, &cx, &preconditions, move |_| Ok(wanted)).await?)
}

/// What is named; `null` takes it away.
pub(super) async fn patch(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Map<String, Value>>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    Ok(change(&app, &cx, &preconditions, move |now| now.changed(&body)).await?)
}

async fn change(
    app: &Arc<App>,
    cx: &tenancy_core::TenantContext,
    preconditions: &Preconditions,
    next: impl FnOnce(Branding) -> Result<Branding> + Send,
) -> Result<Answer> {
    let mut tx = app.db.begin(cx).await?;
    let mut shown = None;
    let write = |object: &mut Map<String, Value>| {
        next(Branding::read(object))?.write(object)?;
        shown = Some(Shown::of(object));
        Ok(())
    };
    let (version, _) = tx.change_branding(cx, preconditions.versions().as_deref(), write).await?;
    let answer = Answer::ok(&shown, etag(version))?;
    commit_own(app, tx).await?;
    Ok(answer)
}
