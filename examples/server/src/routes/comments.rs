//! Comments on documents: by the tenant's own members, and through a share that lets others comment.

use std::sync::Arc;

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use tenancy_core::share::Perms;
use tenancy_core::{Error, ErrorKind, Result, Role, TenantContext};
use tenancy_sqlx::from_sqlx;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::attachments::exists;
use super::projects::one_more;
use super::shared;
use crate::app::App;
use crate::extract::{Caller, Id, NoQuery, Path, Query, check_text};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::page::{List, Page, PageQuery};

const MAX_BODY: usize = 4000;
const COLUMNS: &str = "id, author, author_tenant, body, created_at";

#[derive(Debug, Serialize, FromRow)]
pub(super) struct Comment {
    id: Uuid,
    /// The subject of whoever wrote it.
    author: String,
    /// Their tenant's name, if it is another than the document's.
    author_tenant: Option<String>,
    body: String,
    created_at: DateTime<Utc>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    body: String,
}

impl Creation {
    fn check(&self) -> Result<()> {
        if self.body.trim().is_empty() {
            return Err(Error::invalid("body", "must say something"));
        }
        check_text("body", &self.body, MAX_BODY)
    }

    fn by(self, cx: &TenantContext, author_tenant: Option<String>, now: DateTime<Utc>) -> Comment {
        let actor = cx.principal().actor();
        let author = actor.subject().map_or_else(|| actor.kind().to_owned(), |subject| subject.as_str().to_owned());
        Comment { id: Uuid::now_v7(), author, author_tenant, body: self.body, created_at: now }
    }
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(document): Path<Id>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Comment>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::Comments)?);
    let mut tx = app.db.read(&cx).await?;
    exists(&mut tx, *document).await?;
    let sql = format!("select {COLUMNS} from comments where tenant_id = $1 and document_id = $2 and id < $3 order by id desc limit $4");
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(cx.tenant_id().as_uuid()).bind(*document);
    let comments = query.bind(before).bind(one_more(limit)).fetch_all(&mut tx).await.map_err(from_sqlx)?;
    Ok(axum::Json(Page::from_one_more(comments, limit, List::Comments, |comment: &Comment| comment.id)))
}

pub(super) async fn add(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(document): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    body.check()?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    // Inserts nothing where there is no such document, and keeps the one that there is from being deleted meanwhile.
    let sql = format!(
        "with document as (select id from documents where tenant_id = $1 and id = $2 for key share)
         insert into comments (tenant_id, document_id, {COLUMNS}) select $1, id, $3, $4, $5, $6, $7 from document returning {COLUMNS}"
    );
    let comment = body.by(&cx, None, now);
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(cx.tenant_id().as_uuid()).bind(*document).bind(comment.id);
    let query = query.bind(&comment.author).bind(&comment.author_tenant).bind(&comment.body).bind(comment.created_at);
    let comment: Comment = query.fetch_one(&mut tx).await.map_err(from_sqlx)?;
    let answer = Answer::added(&comment)?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn list_shared(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(share): Path<Id>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Comment>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::Comments)?);
    let (mut tx, granted) = app.db.read_shared(&cx, *share).await?;
    let sql = format!("select {COLUMNS} from tenancy_views.comments where document_id = $1 and id < $2 order by id desc limit $3");
    let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(shared::document(&granted)?).bind(before).bind(one_more(limit));
    let comments = query.fetch_all(&mut tx).await.map_err(from_sqlx)?;
    Ok(axum::Json(Page::from_one_more(comments, limit, List::Comments, |comment: &Comment| comment.id)))
}

/// PostgreSQL refuses it unless the share lets the tenant comment.
pub(super) async fn add_shared(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(share): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Member)?;
    body.check()?;
    let (mut tx, granted) = app.db.begin_shared(&cx, *share).await?;
    let (document, now, by) = (shared::document(&granted)?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let sql = format!("insert into tenancy_views.comments_write (tenant_id, document_id, {COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7)");
    let comment = body.by(&cx, Some(cx.tenant().name.clone()), now);
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(granted.owner.as_uuid()).bind(document).bind(comment.id);
    let query = query.bind(&comment.author).bind(&comment.author_tenant).bind(&comment.body).bind(comment.created_at);
    query.execute(&mut tx).await.map_err(from_sqlx).map_err(|error| match error.kind() {
        // Refused although it lets them: it has ended meanwhile.
        ErrorKind::Forbidden if granted.perms >= Perms::Comment => Error::not_found().with_source(error),
        ErrorKind::Forbidden => Error::new(ErrorKind::Forbidden, "this share does not let anybody comment").with_source(error),
        _ => error,
    })?;
    let answer = Answer::added(&comment)?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}
