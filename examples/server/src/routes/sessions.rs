//! One's own sessions.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tenancy_core::Role;
use tenancy_sqlx::sign_in::{Credential, Session, SignedIn};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use crate::app::App;
use crate::extract::{Caller, Id, NoQuery, Path, Query};
use crate::page::Page;
use crate::signed_in::clear_cookie;

/// A session, and whether it is the one that asks.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    session: Session,
    current: bool,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    with: Option<Extension<SignedIn>>,
) -> Result<axum::Json<Page<Listed>>, Problem> {
    cx.require(Role::Viewer)?;
    let current = current(with);
    let sessions = app.db.read(&cx).await?.sessions(&cx, app.now()).await?;
    let items = sessions.into_iter().map(|session| Listed { current: current == Some(session.id), session }).collect();
    Ok(axum::Json(Page { items, next_cursor: None }))
}

/// Signs out everywhere.
pub(super) async fn end_all(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.end_sessions(&cx).await?;
    tx.commit().await?;
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, clear_cookie()?)]).into_response())
}

/// Signs out of one session.
pub(super) async fn end(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    with: Option<Extension<SignedIn>>,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.end_session(&cx, *id).await?;
    tx.commit().await?;
    if current(with) == Some(*id) {
        return Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, clear_cookie()?)]).into_response());
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The session that the request came with.
fn current(with: Option<Extension<SignedIn>>) -> Option<Uuid> {
    with.filter(|with| with.with == Credential::Session).map(|with| with.id)
}
