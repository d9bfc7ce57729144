//! A tenant's own domains: claimed, proved, released.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tenancy_core::{Domain, DomainName, Error, Role};
use tenancy_tower::axum::Problem;

use crate::app::{App, uncancelled};
use crate::extract::{Caller, NoQuery, Path, Query};
use crate::idempotency::{Answer, Command, Memory, Submitted};
use crate::page::Page;
use crate::problem;

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Domain>>, Problem> {
    cx.require(Role::Admin)?;
    let items = app.db.read(&cx).await?.domains().await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
    domain: String,
}

pub(super) async fn claim(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Claim>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let domain: DomainName = body.domain.parse()?;
    if app.base_domain.as_deref().is_some_and(|base| domain.is_within(base)) {
        return Err(Error::invalid("domain", "must not be a name of this platform").into());
    }
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let claimed = tx.claim_domain(&cx, &domain).await?;
    let answer = Answer::made(&claimed, format!("/api/v1/domains/{domain}"))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(domain): Path<DomainName>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Domain>, Problem> {
    cx.require(Role::Admin)?;
    let claimed = app.db.read(&cx).await?.domain(&domain).await?;
    Ok(axum::Json(claimed.ok_or_else(Error::not_found)?))
}

/// Looks for the proof now. That it was not found, or that the DNS did not answer, is in the answer's `problem`.
pub(super) async fn verify(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(domain): Path<DomainName>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(_): Command,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let Some(record) = tx.look_at_domain(&domain).await? else {
        return Ok(problem::too_soon(tenancy_sqlx::domains::PAUSE));
    };
    tx.commit().await?;
    let proof = record.look(app.dns.as_ref()).await;
    let mut tx = app.db.begin(&cx).await?;
    let found = tx.record_proof(&cx, &domain, &record, &proof).await?;
    uncancelled(tx.commit()).await?;
    app.catalog.refresh().await?;
    Ok(axum::Json(found).into_response())
}

pub(super) async fn release(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(domain): Path<DomainName>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.release_domain(&cx, &domain).await?;
    uncancelled(tx.commit()).await?;
    app.catalog.refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
