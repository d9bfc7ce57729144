//! Invitations to become a member.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tenancy_core::{Email, Invite, NewInvite, Role};
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use crate::app::{App, WELCOME};
use crate::extract::{Caller, Id, NoQuery, Path, Query};
use crate::idempotency::{Answer, Command, Memory, Submitted};
use crate::page::{List, Page, PageQuery};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Invite>>, Problem> {
    cx.require(Role::Admin)?;
    let (limit, before) = (query.limit()?, query.before(List::Invites)?);
    let invites = app.db.read(&cx).await?.invites(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(invites, limit, List::Invites, |invite| invite.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    email: String,
    role: Role,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    scopes: Option<Vec<String>>,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut new = NewInvite::new(body.email.parse::<Email>()?, body.role, app.link(&cx.tenant().slug, WELCOME)?);
    (new.name, new.scopes) = (body.name, body.scopes);
    new.ttl = body.ttl_seconds.map_or(Invite::TTL, Duration::from_secs);
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let invite = tx.invite(&cx, &new, now).await?;
    let answer = Answer::made(&invite, format!("/api/v1/invites/{}", invite.id))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

/// Sends it again, good for the usual time: the former link is good no more.
pub(super) async fn resend(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(once): Command,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let invite = tx.resend_invite(&cx, *id, &app.link(&cx.tenant().slug, WELCOME)?, Invite::TTL, now).await?;
    let answer = Answer::plain(&invite)?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.revoke_invite(&cx, *id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
