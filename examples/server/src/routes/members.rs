//! The members of a tenant, and who the caller is.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::{Email, Error, Member, MemberChange, NewMember, Principal, Result, Role, Standing, Subject};
use tenancy_sqlx::TenantTx;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::projects::one_more;
use crate::app::App;
use crate::extract::{Caller, Id, Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Member>>, Problem> {
    cx.require(Role::Viewer)?;
    let (limit, before) = (query.limit()?, query.before(List::Members)?);
    let members = app.db.read(&cx).await?.members(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(members, limit, List::Members, |member| member.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    email: String,
    name: String,
    role: Role,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

impl Creation {
    fn parse(self) -> Result<NewMember> {
        let mut new = NewMember::new(self.email.parse::<Email>()?, self.name, self.role);
        new.subject = self.subject.as_deref().map(str::parse).transpose()?;
        new.scopes = self.scopes;
        Ok(new)
    }
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let new = body.parse()?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let member = tx.add_member(&cx, &new).await?;
    let answer = Answer::created(&member, etag(member.version), format!("/api/v1/members/{}", member.id))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let member = app.db.read(&cx).await?.member(*id).await?.ok_or_else(Error::not_found)?;
    let etag = etag(member.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(member)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    role: Option<Role>,
    /// `null` lifts the restriction.
    #[serde(default, deserialize_with = "present")]
    scopes: Option<Option<Vec<String>>>,
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let change = MemberChange::new(body.name, body.role, body.scopes);
    let mut tx = app.db.begin(&cx).await?;
    let expected = expected(&mut tx, *id, &preconditions).await?;
    let member = tx.update_member(&cx, *id, &change, expected).await?;
    tx.commit().await?;
    Ok(Answer::ok(&member, etag(member.version))?)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Path(id): Path<Id>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let expected = expected(&mut tx, *id, &preconditions).await?;
    tx.remove_member(&cx, *id, expected).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The one version that a change may apply to, of those in `If-Match`.
async fn expected(tx: &mut TenantTx, id: Uuid, preconditions: &Preconditions) -> Result<Option<u64>> {
    let Some(versions) = preconditions.versions() else { return Ok(None) };
    let found = tx.member(id).await?.ok_or_else(Error::not_found)?;
    if versions.contains(&found.version.cast_signed()) { Ok(Some(found.version)) } else { Err(mismatch()) }
}

/// Whoever the token is of, with what they may do now.
#[derive(Debug, Serialize)]
pub(super) struct Me {
    kind: &'static str,
    subject: Option<Subject>,
    role: Option<Role>,
    scopes: Vec<String>,
    member: Option<Member>,
}

pub(super) async fn me(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Me>, Problem> {
    let actor = cx.principal().actor();
    let mut me = Me {
        kind: actor.kind(),
        subject: actor.subject().cloned(),
        role: cx.principal().role(),
        scopes: cx.scopes().iter().cloned().collect(),
        member: None,
    };
    if let Principal::Member { subject, .. } = cx.principal() {
        let mut tx = app.db.read(&cx).await?;
        if let Standing::Active { id, .. } = tx.member_standing(subject).await? {
            me.member = tx.member(id).await?;
        }
    }
    Ok(axum::Json(me))
}
