//! This installation and others: for operators, which ones it knows; and for those, which prove themselves at each request, what is shared
//! with them.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use tenancy_core::federation::{Origin, PublicKey};
use tenancy_core::{Error, Result};
use tenancy_sqlx::federation::{Announcement, PROOF, Peer, PeerRequest};
use tenancy_sqlx::from_sqlx;
use tenancy_tower::axum::Problem;

use super::documents::DOCUMENT;
use super::projects::one_more;
use super::tenants::begin;
use crate::app::App;
use crate::edge::RequestId;
use crate::extract::{Id, Json, NoQuery, Path, Query, present};
use crate::idempotency::Command;
use crate::operator::By;
use crate::page::{List, Page, PageQuery};

pub(super) async fn announce(State(app): State<Arc<App>>, Query(NoQuery {}): Query<NoQuery>) -> Result<axum::Json<Announcement>, Problem> {
    Ok(axum::Json(app.federation()?.announcement(app.now())?))
}

pub(super) async fn peers(State(app): State<Arc<App>>, by: By, Query(query): Query<PageQuery>) -> Result<axum::Json<Page<Peer>>, Problem> {
    let (limit, before) = (query.limit()?, query.before(List::Peers)?);
    let peers = begin(&app, &by, "list other installations").await?.federation_peers(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(peers, limit, List::Peers, |peer| peer.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Added {
    origin: Origin,
    /// As that one's operators told it, and not as it is found at the origin.
    key: PublicKey,
}

pub(super) async fn add(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Added>,
) -> Result<(StatusCode, axum::Json<Peer>), Problem> {
    if !app.federation()?.permits(&body.origin) {
        return Err(Error::invalid("origin", "must not be on this machine").into());
    }
    let mut tx = begin(&app, &by, "add another installation").await?;
    let peer = tx.add_federation_peer(&body.origin, &body.key).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(peer)))
}

/// What is shared with it, and by it, ends. Removed again, it stays removed.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    by: By,
    Path(peer): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<StatusCode, Problem> {
    let mut tx = begin(&app, &by, "remove another installation").await?;
    tx.remove_federation_peer(*peer).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotated {
    /// Left out: what the installation announces, signed with the key that is pinned.
    #[serde(default, deserialize_with = "present")]
    key: Option<PublicKey>,
}

pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    by: By,
    Path(peer): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Rotated>,
) -> Result<axum::Json<Peer>, Problem> {
    let next = match body.key {
        Some(key) => key,
        None => {
            let found = begin(&app, &by, "look for another installation's next key").await?.federation_peer(*peer).await?;
            app.federation()?.next_key_of(&found, app.now()).await?
        }
    };
    let mut tx = begin(&app, &by, "pin another installation's next key").await?;
    let pinned = tx.pin_federation_key(*peer, &next).await?;
    tx.commit().await?;
    Ok(axum::Json(pinned))
}

/// What another installation asks, and how it proves who it is.
fn asked<'a>(app: &App, headers: &'a HeaderMap, RequestId(request_id): RequestId, share: Id, act: &'a str) -> Result<PeerRequest<'a>> {
    let mut proofs = headers.get_all(PROOF).iter();
    let (Some(proof), None) = (proofs.next().and_then(|proof| proof.to_str().ok()), proofs.next()) else {
        return Err(Error::invalid(PROOF, "this needs the header, once"));
    };
    let method = if act == DOCUMENT { "GET" } else { "POST" };
    Ok(PeerRequest { proof, method, share: *share, act, request_id, now: app.now() })
}

/// A document as another installation sees it.
#[derive(Debug, Serialize, Deserialize, FromRow)]
pub(super) struct Lent {
    pub(super) title: String,
    pub(super) content: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) version: i64,
}

pub(super) async fn document(
    State(app): State<Arc<App>>,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
) -> Result<axum::Json<Lent>, Problem> {
    let opened = app.federation()?.open(&asked(&app, &headers, id, share, DOCUMENT)?).await?;
    if opened.resource.kind() != DOCUMENT {
        return Err(Error::not_found().into());
    }
    let mut tx = app.db.read_federated(&opened.ticket).await?;
    let query = sqlx::query_as("select title, content, created_at, updated_at, version from tenancy_views.documents_link where id = $1");
    let lent = query.bind(opened.resource.id()).fetch_one(&mut tx).await.map_err(from_sqlx)?;
    Ok(axum::Json(lent))
}

async fn answer(app: &App, headers: &HeaderMap, id: RequestId, share: Id, act: &str) -> Result<StatusCode, Problem> {
    app.federation()?.answer(&asked(app, headers, id, share, act)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn accept(
    State(app): State<Arc<App>>,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    Command(_): Command,
) -> Result<StatusCode, Problem> {
    answer(&app, &headers, id, share, "accept").await
}

pub(super) async fn decline(
    State(app): State<Arc<App>>,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    Command(_): Command,
) -> Result<StatusCode, Problem> {
    answer(&app, &headers, id, share, "decline").await
}

pub(super) async fn end(
    State(app): State<Arc<App>>,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    Command(_): Command,
) -> Result<StatusCode, Problem> {
    answer(&app, &headers, id, share, "end").await
}
