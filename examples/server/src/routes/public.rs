//! What a link shows, to whoever has it: no tenant, no session and no cookie is in play.
//!
//! Each GET of a link is one of its uses. What is answered has a ticket, which shows the document's attachments for ten minutes and as long
//! as the link itself does. The token is a secret in a path: paths are logged as their routes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_sqlx::from_sqlx;
use tenancy_tower::axum::Problem;

use super::attachments::{self, percent_encode};
use super::documents::DOCUMENT;
use super::link_page;
use crate::app::App;
use crate::edge::RequestId;
use crate::extract::{Form, NoQuery, Path, Query};
use crate::precondition::Preconditions;
use crate::problem;

static ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");
/// For the page, which has no script, no style and no picture; and which no other page holds.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'");
/// How long a ticket holds.
const TICKET_SECONDS: u32 = 600;

/// What all answers here have, refusals too. `no-store` is on every answer of the server.
pub(super) async fn shield(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(ROBOTS.clone(), HeaderValue::from_static("noindex, nofollow"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(POLICY);
    response
}

/// What an opened link shows.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) document: Document,
    pub(super) attachments: Vec<Listed>,
    ticket: String,
    expires_in: u32,
}

#[derive(Debug, Serialize, FromRow)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) content: String,
    updated_at: DateTime<Utc>,
}

#[derive(Debug, Serialize)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) size: i64,
    content_type: String,
    /// With the ticket.
    pub(super) href: String,
}

/// Who asks, and how.
#[derive(Debug)]
pub(super) struct Asker {
    client: String,
    request_id: uuid::Uuid,
    wants_page: bool,
}

impl Asker {
    fn new(peer: SocketAddr, RequestId(request_id): RequestId, headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        let mut types = accepted.map(|media| media.split(';').next().unwrap_or_default().trim());
        Self { client: peer.ip().to_string(), request_id, wants_page: types.any(|media| media.eq_ignore_ascii_case("text/html")) }
    }

    async fn open(&self, app: &App, token: &str, passphrase: Option<&str>) -> Response {
        match shown(app, self, token, passphrase).await {
            Ok(shown) if self.wants_page => page(StatusCode::OK, link_page::document(&shown)),
            Ok(shown) => axum::Json(shown).into_response(),
            Err(error) if self.wants_page && error.kind() == ErrorKind::Unauthenticated => {
                page(StatusCode::UNAUTHORIZED, link_page::passphrase(passphrase.is_some()))
            }
            Err(error) if self.wants_page && error.kind() == ErrorKind::NotFound => page(StatusCode::NOT_FOUND, link_page::nothing()),
            Err(error) => Problem(error).into_response(),
        }
    }
}

fn page(status: StatusCode, html: String) -> Response {
    (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

pub(super) async fn open(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(id): Extension<RequestId>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    // A HEAD shows nothing, so it must not be a use.
    if method == Method::HEAD {
        return problem::method_not_allowed().await;
    }
    Asker::new(peer, id, &headers).open(&app, &token, None).await
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    passphrase: String,
}

pub(super) async fn open_with(
    State(app): State<Arc<App>>,
    Path(token): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    Form(said): Form<Said>,
) -> Response {
    Asker::new(peer, id, &headers).open(&app, &token, Some(&said.passphrase)).await
}

async fn shown(app: &App, asker: &Asker, token: &str, passphrase: Option<&str>) -> Result<Shown> {
    let opened = app.db.open_link(token, passphrase, &asker.client, asker.request_id).await?;
    if opened.resource.kind() != DOCUMENT {
        return Err(Error::not_found());
    }
    let mut tx = app.db.read_link(token, &opened.ticket).await?;
    let query = sqlx::query_as("select title, content, updated_at from tenancy_views.documents_link where id = $1");
    let document = query.bind(opened.resource.id()).fetch_one(&mut tx).await.map_err(from_sqlx)?;
    let query = sqlx::query_as("select name, size, content_type from tenancy_views.attachments_link where document_id = $1 order by name");
    let rows: Vec<(String, i64, String)> = query.bind(opened.resource.id()).fetch_all(&mut tx).await.map_err(from_sqlx)?;
    let attachments = rows.into_iter().map(|(name, size, content_type)| {
        let href = format!("/s/{token}/attachments/{}?ticket={}", percent_encode(&name), opened.ticket);
        Listed { name, size, content_type, href }
    });
    Ok(Shown { document, attachments: attachments.collect(), ticket: opened.ticket.clone(), expires_in: TICKET_SECONDS })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TicketQuery {
    ticket: String,
}

/// The ticket decides: it stands for an opening of this link.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    Path((token, name)): Path<(String, String)>,
    Query(TicketQuery { ticket }): Query<TicketQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    attachments::check_name(&name)?;
    let mut tx = app.db.read_link(&token, &ticket).await?;
    let sql = format!("select tenant_id, {} from tenancy_views.attachments_link where name = $1", attachments::COLUMNS);
    let found = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(&name).fetch_one(&mut tx).await.map_err(from_sqlx)?;
    // Whoever reads slowly must not hold a connection.
    drop(tx);
    Ok(attachments::send_shared(&app, found, &preconditions).await?)
}
