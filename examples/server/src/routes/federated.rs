//! Shares with tenants of other installations: for the admins of this side, and what is shared for its members.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::{Error, ErrorKind, Result, Role};
use tenancy_sqlx::federation::{FederatedGrant, FederatedShare, NewFederatedShare};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::documents::DOCUMENT;
use super::federation::Lent;
use super::projects::one_more;
use crate::app::{App, uncancelled};
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query};
use crate::idempotency::Answer;
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag};

/// One side of a share.
#[derive(Debug, Serialize)]
#[serde(tag = "direction", rename_all = "lowercase")]
pub(super) enum Side {
    Outgoing(FederatedShare),
    Incoming(FederatedGrant),
}

impl Side {
    const fn id(&self) -> Uuid {
        match self {
            Self::Outgoing(share) => share.id,
            Self::Incoming(grant) => grant.id,
        }
    }

    const fn version(&self) -> u64 {
        match self {
            Self::Outgoing(share) => share.version,
            Self::Incoming(grant) => grant.version,
        }
    }
}

/// An offer at the one moment when its document is seen.
#[derive(Debug, Serialize)]
struct Offered {
    #[serde(flatten)]
    side: Side,
    document: String,
}

/// Without an `Idempotency-Key`: the document is told once, and the same offer can't be made twice.
pub(super) async fn offer(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Json(new): Json<NewFederatedShare>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let (share, document) = tx.offer_federated(app.federation()?, &cx, &new).await?;
    tx.commit().await?;
    let (etag, location) = (etag(share.version), format!("/api/v1/federated-shares/{}", share.id));
    Ok(Answer::created(&Offered { side: Side::Outgoing(share), document }, etag, location)?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Brought {
    document: String,
}

/// Accepted again, it stays accepted. Done to its end: the other side has been told.
pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Brought>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let grant = uncancelled(async move { app.federation()?.accept(&cx, &body.document, app.now()).await }).await?;
    let etag = etag(grant.version);
    Ok(Answer::ok(&Side::Incoming(grant), etag)?)
}

pub(super) async fn decline(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Brought>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let grant = uncancelled(async move { app.federation()?.decline(&cx, &body.document, app.now()).await }).await?;
    let etag = etag(grant.version);
    Ok(Answer::ok(&Side::Incoming(grant), etag)?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    direction: Option<Direction>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    #[default]
    Incoming,
    Outgoing,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(ListQuery { limit, cursor, direction }): Query<ListQuery>,
) -> Result<axum::Json<Page<Side>>, Problem> {
    cx.require(Role::Admin)?;
    let (page, direction) = (PageQuery::new(limit, cursor), direction.unwrap_or_default());
    let list = match direction {
        Direction::Incoming => List::Incoming,
        Direction::Outgoing => List::Outgoing,
    };
    let (limit, before) = (page.limit()?, page.before(list)?);
    let mut tx = app.db.read(&cx).await?;
    let sides: Vec<Side> = match direction {
        Direction::Incoming => tx.federated_grants(before, one_more(limit)).await?.into_iter().map(Side::Incoming).collect(),
        Direction::Outgoing => tx.federated_shares(before, one_more(limit)).await?.into_iter().map(Side::Outgoing).collect(),
    };
    Ok(axum::Json(Page::from_one_more(sides, limit, list, Side::id)))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.read(&cx).await?;
    let side = match tx.federated_share(*id).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Side::Incoming(tx.federated_grant(*id).await?),
        found => Side::Outgoing(found?),
    };
    let etag = etag(side.version());
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(side)).into_response())
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
    match tx.end_federated(&cx, *id).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            drop(tx);
            uncancelled(async move { app.federation()?.leave(&cx, *id, app.now()).await }).await?;
        }
        ended => {
            ended?;
            tx.commit().await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A document of another installation's tenant, as that installation answered just now.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    federated_share: Uuid,
    #[serde(flatten)]
    document: Lent,
}

pub(super) async fn document(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Shown>, Problem> {
    cx.require(Role::Viewer)?;
    let body = app.federation()?.ask(&cx, *id, DOCUMENT, app.now()).await?;
    let odd = |source| Error::new(ErrorKind::Unavailable, "the other installation's answer can't be read").with_source(source);
    Ok(axum::Json(Shown { federated_share: *id, document: serde_json::from_slice(&body).map_err(odd)? }))
}
