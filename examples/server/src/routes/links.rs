//! Links, for a tenant's admins: made, listed, revoked. What whoever has one sees is in [`public`](super::public).

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use tenancy_core::share::{Link, NewLink};
use tenancy_core::{Result, Role};
use tenancy_sqlx::sharing::ReadyLink;
use tenancy_tower::axum::Problem;

use super::projects::one_more;
use crate::app::App;
use crate::extract::{Caller, Id, NoQuery, Path, Query};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::page::{List, Page, PageQuery};

/// What the paths of links begin with.
const OPEN: &str = "/s/";

/// A link, with its address where it is told.
#[derive(Debug, Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    link: &'a Link,
    /// Below this server's own. Whoever has it opens the link.
    url: Option<String>,
}

/// The links that were mailed, whose addresses only their receivers know.
#[derive(Debug, Serialize)]
struct Sent {
    items: Vec<Link>,
}

/// The address is told in this answer alone: where the request is sent again with its `Idempotency-Key`, `url` is null, for it was not kept.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<NewLink>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mailed = !body.recipients.is_empty();
    let ready = ReadyLink::new(body).await?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    if mailed {
        let items = tx.send_links(&cx, &ready, &app.link(&cx.tenant().slug, OPEN)?).await?;
        let answer = Answer::added(&Sent { items })?;
        once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
        tx.commit().await?;
        return Ok(answer);
    }
    let (link, token) = tx.create_link(&cx, &ready).await?;
    let location = format!("/api/v1/links/{}", link.id);
    let kept = Answer::made(&Made { link: &link, url: None }, location.clone())?;
    once.remember(&mut tx, Memory::Tenant, &by, &kept).await?;
    let told = Answer::made(&Made { link: &link, url: Some(format!("{OPEN}{}", token.expose())) }, location)?;
    tx.commit().await?;
    Ok(told)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Link>>, Problem> {
    cx.require(Role::Admin)?;
    let (limit, before) = (query.limit()?, query.before(List::Links)?);
    let links = app.db.read(&cx).await?.links(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(links, limit, List::Links, |link| link.id)))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Link>, Problem> {
    cx.require(Role::Admin)?;
    Ok(axum::Json(app.db.read(&cx).await?.link(*id).await?))
}

/// Revoked again, it stays revoked.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    tx.revoke_link(&cx, *id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
