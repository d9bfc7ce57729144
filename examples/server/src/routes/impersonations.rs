//! Operators' visits to tenants: operators begin them, and both sides see and end them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, NewImpersonation, Result, Role};
use tenancy_sqlx::{Impersonation, Token};
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use super::tenants::{begin_about, find};
use crate::app::App;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::operator::By;
use crate::page::{List, Page, PageQuery};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    reason: String,
    #[serde(default, deserialize_with = "present")]
    ttl_minutes: Option<u16>,
    #[serde(default)]
    write: bool,
}

/// A visit with its token, which is shown once: an answer that is given again has none.
#[derive(Debug, Serialize)]
struct WithToken<'a> {
    #[serde(flatten)]
    visit: &'a Impersonation,
    token: Option<&'a str>,
}

pub(super) async fn start(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Wish>,
) -> Result<Answer, Problem> {
    let mut wish = NewImpersonation::new(body.reason).with_write(body.write);
    wish.minutes = body.ttl_minutes.unwrap_or(wish.minutes);
    wish.permit(by.role())?;
    let found = find(&app, &tenant).await?;
    let (mut tx, now) = (begin_about(&app, &by, &found, "look at a tenant from inside").await?, app.now());
    let actor = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &actor, now).await? {
        return Ok(answer);
    }
    let (visit, token) = tx.start_impersonation(found.id, by.operator(), &wish).await?;
    let answer = |token: Option<&Token>| {
        let body = WithToken { visit: &visit, token: token.map(Token::expose) };
        Answer::made(&body, format!("/api/v1/tenants/{}/impersonations/{}", visit.tenant_id, visit.id))
    };
    once.remember(&mut tx, Memory::Operators, &actor, &answer(None)?).await?;
    tx.commit().await?;
    Ok(answer(Some(&token))?)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Impersonation>>, Problem> {
    let (limit, before) = (query.limit()?, query.before(List::Impersonations)?);
    let found = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &found, "list visits to a tenant").await?;
    let items = tx.impersonations(found.id, before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(items, limit, List::Impersonations, |visit| visit.id)))
}

pub(super) async fn end(
    State(app): State<Arc<App>>,
    by: By,
    Path((tenant, visit)): Path<(String, String)>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    let found = find(&app, &tenant).await?;
    let visit = visit.parse().map_err(|_| Error::not_found())?;
    let mut tx = begin_about(&app, &by, &found, "end a visit to a tenant").await?;
    tx.end_impersonation(found.id, visit).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Impersonation>>, Problem> {
    cx.require(Role::Admin)?;
    let (limit, before) = (query.limit()?, query.before(List::Impersonations)?);
    let items = app.db.read(&cx).await?.impersonations(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(items, limit, List::Impersonations, |visit| visit.id)))
}

pub(super) async fn end_own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.end_impersonation(&cx, *id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a tenant lets operators in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consent {
    allowed: bool,
}

pub(super) async fn consent(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Consent>, Problem> {
    cx.require(Role::Admin)?;
    let allowed = app.db.read(&cx).await?.allows_impersonation().await?;
    Ok(axum::Json(Consent { allowed }))
}

pub(super) async fn set_consent(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Consent>,
) -> Result<axum::Json<Consent>, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.allow_impersonation(&cx, body.allowed).await?;
    tx.commit().await?;
    Ok(axum::Json(body))
}
