//! The tenants, for operators.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};
use tenancy_core::{
    Error, ErrorKind, LinkBase, NewInvite, NewTenant, Result, Role, Tenant, TenantCatalog as _, TenantChange, TenantHint, TenantQuery,
    TenantSlug, TenantStatus,
};
use tenancy_sqlx::{SystemTx, from_sqlx};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use crate::app::{App, WELCOME, uncancelled};
use crate::edge::RequestId;
use crate::extract::{Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Command, Memory, Once, Submitted};
use crate::operator::By;
use crate::page::{List, Page, decode, encode};
use crate::plans::{entitle, plans};
use crate::precondition::{Preconditions, etag, mismatch};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    cursor: Option<String>,
    search: Option<String>,
    status: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Page<Arc<Tenant>>>, Problem> {
    let mut asked = TenantQuery::default();
    asked.limit = query.limit.unwrap_or(asked.limit);
    asked.search = query.search;
    asked.status = query.status.map(|status| status.parse()).transpose()?;
    asked.after = query.cursor.map(|cursor| decode(List::Tenants, &cursor)?.try_into()).transpose()?;
    let page = app.catalog.list(&asked, &by.actor()?).await?;
    let next_cursor = page.next.map(|id| encode(List::Tenants, id.as_uuid()));
    Ok(axum::Json(Page { items: page.tenants, next_cursor }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    slug: String,
    name: String,
    #[serde(default, deserialize_with = "present")]
    plan: Option<String>,
    #[serde(default)]
    branding: Map<String, Value>,
    #[serde(default)]
    flags: Map<String, Value>,
    #[serde(default, deserialize_with = "present")]
    status: Option<String>,
    #[serde(default)]
    provision: bool,
    #[serde(default, deserialize_with = "present")]
    owner: Option<Owner>,
}

/// Who is to own the tenant: they are invited by mail, which goes out as soon as the tenant is active.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owner {
    email: String,
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
}

impl Owner {
    fn invite(self, link: LinkBase) -> Result<NewInvite> {
        let email = self.email.parse().map_err(|error: Error| Error::invalid("owner.email", error.message().to_owned()))?;
        let mut invite = NewInvite::new(email, Role::Owner, link);
        invite.name = self.name;
        invite.check().map_err(|error| Error::invalid("owner.name", error.message().to_owned()))?;
        Ok(invite)
    }
}

/// The tenant is active at once, or waits to be provisioned, or is: with one that was made ahead, at once.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    let new = NewTenant::new(body.slug.parse()?, body.name);
    let mut new = match body.status.as_deref() {
        None if body.provision => new,
        Some(_) if body.provision => return Err(Error::invalid("status", "must be absent where `provision` is true").into()),
        None | Some("active") => new.active(),
        Some("provisioning") => new,
        Some(_) => return Err(Error::invalid("status", "must be active or provisioning").into()),
    };
    new.plan = body.plan.unwrap_or(new.plan);
    new.branding = body.branding;
    new.flags = body.flags;
    plans().plan(&new.plan)?;
    let link = app.link(&new.slug, WELCOME)?;
    let owner = body.owner.map(|owner| owner.invite(link)).transpose()?;
    let (mut tx, now) = (begin(&app, &by, "create a tenant").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let warm = if body.provision { tx.take_warm(new.clone(), plans(), now).await? } else { None };
    let tenant = match warm {
        Some(tenant) => tenant,
        None => made(&mut tx, new, body.provision, request_id, now).await?,
    };
    if let Some(owner) = owner {
        tx.invite_owner(tenant.id, &owner, now).await?;
    }
    let answer = Answer::created(&tenant, etag(tenant.version), format!("/api/v1/tenants/{}", tenant.id))?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    commit(&app, tx).await?;
    Ok(answer)
}

async fn made(tx: &mut SystemTx, new: NewTenant, provision: bool, request_id: Uuid, now: DateTime<Utc>) -> Result<Tenant> {
    let tenant = tx.create_tenant(new, now).await?;
    if tenant.status == TenantStatus::Active {
        entitle(tx, tenant.id, &tenant.plan).await?;
    } else if provision {
        tx.request_provisioning(tenant.id, plans(), Value::Null, Some(request_id)).await?;
    }
    Ok(tenant)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    let tenant = find(&app, &tenant).await?;
    let etag = etag(tenant.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(tenant)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    slug: Option<String>,
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    plan: Option<String>,
    #[serde(default, deserialize_with = "present")]
    branding: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "present")]
    flags: Option<Map<String, Value>>,
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    let mut change = TenantChange::default();
    change.slug = body.slug.map(|slug| slug.parse::<TenantSlug>()).transpose()?;
    change.name = body.name;
    change.plan = body.plan;
    change.branding = body.branding;
    change.flags = body.flags;
    let found = find(&app, &tenant).await?;
    let expected = expected(&preconditions, &found)?;
    let mut tx = begin_about(&app, &by, &found, "change a tenant").await?;
    let tenant = tx.update_tenant(found.id, change, expected, app.now()).await?;
    if tenant.plan != found.plan {
        entitle(&mut tx, tenant.id, &tenant.plan).await?;
    }
    commit(&app, tx).await?;
    Ok(Answer::ok(&tenant, etag(tenant.version))?)
}

/// The soft deletion: nothing is served and nothing is lost. Doing it again changes nothing.
pub(super) async fn archive(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    let found = find(&app, &tenant).await?;
    let expected = expected(&preconditions, &found)?;
    let mut tx = begin_about(&app, &by, &found, "archive a tenant").await?;
    if status(&mut tx, &found).await? != TenantStatus::Archived {
        tx.update_tenant(found.id, TenantChange::status(TenantStatus::Archived), expected, app.now()).await?;
        commit(&app, tx).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Also brings an archived tenant back, as a suspended one.
pub(super) async fn suspend(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Command(once): Command,
) -> Result<Answer, Problem> {
    go_to(&app, &by, &tenant, TenantStatus::Suspended, &preconditions, &once).await.map_err(Problem)
}

pub(super) async fn resume(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Command(once): Command,
) -> Result<Answer, Problem> {
    go_to(&app, &by, &tenant, TenantStatus::Active, &preconditions, &once).await.map_err(Problem)
}

/// Takes the tenant along one edge of its lifecycle; one that is there already stays as it is.
async fn go_to(app: &Arc<App>, by: &By, tenant: &str, to: TenantStatus, preconditions: &Preconditions, once: &Once) -> Result<Answer> {
    let found = find(app, tenant).await?;
    let (mut tx, now) = (begin_about(app, by, &found, "change a tenant's status").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let is = status(&mut tx, &found).await?;
    if is == TenantStatus::Provisioning && to == TenantStatus::Active {
        return Err(Error::new(ErrorKind::Conflict, "the tenant is not provisioned yet: provision it"));
    }
    if is == to {
        drop(tx);
        app.catalog.refresh().await?;
        let tenant = find(app, tenant).await?;
        return Answer::ok(&tenant, etag(tenant.version));
    }
    let expected = expected(preconditions, &found)?;
    let tenant = tx.update_tenant(found.id, TenantChange::status(to), expected, now).await?;
    let answer = Answer::ok(&tenant, etag(tenant.version))?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    commit(app, tx).await?;
    Ok(answer)
}

pub(super) async fn begin(app: &App, by: &By, reason: &str) -> Result<SystemTx> {
    app.db.dangerous().on_behalf_of(by.actor()?).begin_system(reason).await
}

/// [`begin`], for what is about one tenant: its admins see the access.
pub(super) async fn begin_about(app: &App, by: &By, tenant: &Tenant, reason: &str) -> Result<SystemTx> {
    app.db.dangerous().on_behalf_of(by.actor()?).about(tenant.id).begin_system(reason).await
}

/// Commits, and lets this node see it at once. If it can't, it will within the bound on staleness: the work is done either way.
pub(super) async fn commit(app: &Arc<App>, tx: SystemTx) -> Result<()> {
    let app = Arc::clone(app);
    uncancelled(async move {
        tx.commit().await?;
        app.catch_up().await;
        Ok(())
    })
    .await
}

/// The tenant that a path names, by id or slug.
pub(super) async fn find(app: &App, tenant: &str) -> Result<Arc<Tenant>> {
    let hint: TenantHint = tenant.parse().map_err(|_| Error::not_found())?;
    app.catalog.find(&hint).await?.ok_or_else(Error::not_found)
}

/// The one version that a change may apply to, of those in `If-Match`.
fn expected(preconditions: &Preconditions, found: &Tenant) -> Result<Option<u64>> {
    match preconditions.versions().as_deref() {
        None => Ok(None),
        // The row decides, not this node's cached copy of it.
        Some([one]) => u64::try_from(*one).map(Some).map_err(|_| mismatch()),
        Some(several) if several.contains(&found.version.cast_signed()) => Ok(Some(found.version)),
        Some(_) => Err(mismatch()),
    }
}

/// The status of the tenant's row, which is locked for the rest of the transaction.
async fn status(tx: &mut SystemTx, tenant: &Tenant) -> Result<TenantStatus> {
    let query = sqlx::query_scalar("select status from tenancy.tenants where id = $1 for update").bind(tenant.id.as_uuid());
    let status: String = query.fetch_one(tx).await.map_err(from_sqlx)?;
    let status: TenantStatus = status.parse()?;
    if status == TenantStatus::Erased {
        return Err(Error::not_found());
    }
    Ok(status)
}
