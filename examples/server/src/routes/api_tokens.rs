//! API tokens: what a member's programs sign in with.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, ErrorKind, Principal, Role};
use tenancy_sqlx::sign_in::{ApiToken, Credential, NewApiToken, SignedIn};
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use crate::app::App;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query};
use crate::page::{List, Page, PageQuery};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<ApiToken>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::ApiTokens)?);
    let tokens = app.db.read(&cx).await?.api_tokens(&cx, before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(tokens, limit, List::ApiTokens, |token| token.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    name: String,
    ttl_seconds: u64,
    /// The caller's own, if it is not said.
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    scopes: Vec<String>,
}

/// A token with its text, which is shown once: so no answer is kept for an `Idempotency-Key`.
#[derive(Debug, Serialize)]
pub(super) struct Made {
    #[serde(flatten)]
    made: ApiToken,
    token: String,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    with: Option<Extension<SignedIn>>,
    Json(body): Json<Creation>,
) -> Result<(StatusCode, axum::Json<Made>), Problem> {
    cx.require(Role::Viewer)?;
    let with = with.map(|with| with.with);
    if with == Some(Credential::ApiToken) {
        return Err(Error::new(ErrorKind::Forbidden, "a token makes no tokens: sign in").into());
    }
    // A session may use all scopes of its member, a signed token its own.
    if with.is_none() && body.scopes.iter().any(|scope| !cx.scopes().contains(scope)) {
        return Err(Error::new(ErrorKind::Forbidden, "a token allows no more than its member may do").into());
    }
    let own = match cx.principal() {
        Principal::Member { role, .. } => *role,
        _ => Role::Viewer,
    };
    let new = NewApiToken::new(body.name, body.role.unwrap_or(own), Duration::from_secs(body.ttl_seconds)).with_scopes(body.scopes);
    let mut tx = app.db.begin(&cx).await?;
    let (made, token) = tx.create_api_token(&cx, &new, app.now()).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(Made { made, token: token.expose().to_owned() })))
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Viewer)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.revoke_api_token(&cx, *id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
