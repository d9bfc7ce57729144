//! What another tenant shares with the caller's: read, and changed, through the share and nothing else. A share that shows nothing to the
//! caller, for whatever reason, is one that is not there.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use tenancy_core::share::Perms;
use tenancy_core::{Error, ErrorKind, Result, Role};
use tenancy_sqlx::from_sqlx;
use tenancy_sqlx::sharing::{Granted, own_and_shared};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::attachments::{self, Attachment};
use super::documents::{Change, DOCUMENT};
use super::projects::one_more;
use crate::app::App;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query};
use crate::idempotency::Answer;
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

/// A document of another tenant. The project that it is in is that tenant's own business.
#[derive(Debug, Serialize, FromRow)]
struct Document {
    id: Uuid,
    title: String,
    content: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    version: i64,
}

const COLUMNS: &str = "id, title, content, created_at, updated_at, version";

#[derive(Debug, Serialize)]
struct Shown {
    share_id: Uuid,
    perms: Perms,
    #[serde(flatten)]
    document: Document,
}

impl Shown {
    const fn new(of: &Granted, document: Document) -> Self {
        Self { share_id: of.share, perms: of.perms, document }
    }
}

/// The id of the document that a share is of.
pub(super) fn document(of: &Granted) -> Result<Uuid> {
    if of.resource.kind() == DOCUMENT { Ok(of.resource.id()) } else { Err(Error::not_found()) }
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let (mut tx, granted) = app.db.read_shared(&cx, *share).await?;
    let query = sqlx::query_as(sqlx::AssertSqlSafe(format!("select {COLUMNS} from tenancy_views.documents where id = $1")));
    let found: Document = query.bind(document(&granted)?).fetch_one(&mut tx).await.map_err(from_sqlx)?;
    let etag = etag(found.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(Shown::new(&granted, found))).into_response())
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    body.check()?;
    let (mut tx, granted) = app.db.begin_shared(&cx, *share).await?;
    let id = document(&granted)?;
    if granted.perms < Perms::Write {
        return Err(Error::new(ErrorKind::Forbidden, "this share does not let it be changed").into());
    }
    let sql = format!(
        "update tenancy_views.documents_write set title = coalesce($2, title), content = coalesce($3, content), updated_at = $4, version = version + 1
          where id = $1 and ($5::bigint[] is null or version = any ($5)) returning {COLUMNS}"
    );
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).bind(&body.title).bind(&body.content).bind(app.now());
    let changed: Option<Document> = query.bind(preconditions.versions()).fetch_optional(&mut tx).await.map_err(from_sqlx)?;
    let Some(changed) = changed else {
        // It is of another version, unless the share has ended meanwhile.
        let query = sqlx::query("select from tenancy_views.documents where id = $1").bind(id);
        query.fetch_one(&mut tx).await.map_err(from_sqlx)?;
        return Err(mismatch().into());
    };
    tx.commit().await?;
    let etag = etag(changed.version);
    Ok(Answer::ok(&Shown::new(&granted, changed), etag)?)
}

pub(super) async fn list_attachments(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<Attachment>>, Problem> {
    cx.require(Role::Viewer)?;
    let (mut tx, granted) = app.db.read_shared(&cx, *share).await?;
    let sql = format!("select {} from tenancy_views.attachments where document_id = $1 order by name", attachments::COLUMNS);
    let items = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(document(&granted)?).fetch_all(&mut tx).await.map_err(from_sqlx)?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

pub(super) async fn download(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path((share, name)): Path<(Id, String)>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    attachments::check_name(&name)?;
    let (mut tx, granted) = app.db.read_shared(&cx, *share).await?;
    let sql = format!("select tenant_id, {} from tenancy_views.attachments where document_id = $1 and name = $2", attachments::COLUMNS);
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(document(&granted)?).bind(&name);
    let found = query.fetch_one(&mut tx).await.map_err(from_sqlx)?;
    // Whoever reads slowly must not hold a connection.
    drop(tx);
    Ok(attachments::send_shared(&app, found, &preconditions).await?)
}

/// A document in the list of all that the tenant sees.
#[derive(Debug, Serialize, FromRow)]
pub(super) struct Summary {
    id: Uuid,
    /// Null for the tenant's own.
    share_id: Option<Uuid>,
    share_perms: Option<String>,
    /// Null for what is shared.
    project_id: Option<Uuid>,
    title: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    version: i64,
}

/// The tenant's own documents, and those that are shared with the caller.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Summary>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::AllDocuments)?);
    let sql = own_and_shared("documents", "id, project_id, title, created_at, updated_at, version", "id");
    let mut tx = app.db.read_with_shares(&cx).await?;
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(one_more(limit)).bind(before);
    let mut documents: Vec<Summary> = query.fetch_all(&mut tx).await.map_err(from_sqlx)?;
    documents.iter_mut().filter(|document| document.share_id.is_some()).for_each(|document| document.project_id = None);
    Ok(axum::Json(Page::from_one_more(documents, limit, List::AllDocuments, |document| document.id)))
}
