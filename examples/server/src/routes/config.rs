//! Settings: a tenant's own for its members, any tenant's and those of plans for operators.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::config::{Config, Layer};
use tenancy_core::{Error, ErrorKind, Result, Role, Tenant};
use tenancy_sqlx::TenantTx;
use tenancy_sqlx::config::ConfigChange;
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::projects::one_more;
use super::tenants::{begin, begin_about, commit, find};
use crate::app::{App, uncancelled};
use crate::extract::{Caller, Json, NoQuery, Path, Query};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::operator::By;
use crate::page::{List, Page, PageQuery};
use crate::plans::plans;
use crate::precondition::{Preconditions, etag, mismatch};

/// What counts, and the version of what the tenant itself has set.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    version: u64,
    settings: &'a Config,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    settings: Layer,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    version: u64,
}

impl Rollback {
    fn version(&self) -> Result<u64> {
        Some(self.version)
            .filter(|version| i64::try_from(*version).is_ok())
            .ok_or_else(|| Error::invalid("version", "must be one of the history"))
    }
}

/// Tells where in the body something is wrong.
fn placed(error: Error) -> Error {
    match (error.kind(), error.field()) {
        (ErrorKind::Invalid, Some(field)) if !matches!(field, "settings" | "version") => {
            Error::invalid(format!("settings.{field}"), error.message().to_owned())
        }
        _ => error,
    }
}

/// The one version that a change may apply to, of those in `If-Match`.
fn expected(preconditions: &Preconditions, current: u64) -> Result<Option<u64>> {
    match preconditions.versions() {
        None => Ok(None),
        Some(versions) if versions.contains(&current.cast_signed()) => Ok(Some(current)),
        Some(_) => Err(mismatch()),
    }
}

/// Commits what a tenant has done to its own row, and lets this node see it at once.
pub(super) async fn commit_own(app: &Arc<App>, tx: TenantTx) -> Result<()> {
    let app = Arc::clone(app);
    uncancelled(async move {
        tx.commit().await?;
        app.catch_up().await;
        Ok(())
    })
    .await
}

pub(super) async fn own(State(app): State<Arc<App>>, Caller(cx): Caller, Query(NoQuery {}): Query<NoQuery>) -> Result<Response, Problem> {
    cx.require(Role::Viewer)?;
    let (config, version) = app.configs.of(&cx).await?;
    Ok(([(ETAG, etag(version))], axum::Json(Shown { version, settings: &config })).into_response())
}

pub(super) async fn change_own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let mut tx = app.db.begin(&cx).await?;
    let expected = expected(&preconditions, tx.settings().await?.version)?;
    let changed = tx.change_settings(&cx, app.configs.settings(), &body.settings, expected).await.map_err(placed)?;
    let settings = app.configs.settings().effective(&app.configs.plan(&cx).await?, &changed.layer);
    commit_own(&app, tx).await?;
    Ok(Answer::ok(&Shown { version: changed.version, settings: &settings }, etag(changed.version))?)
}

pub(super) async fn own_history(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<ConfigChange>>, Problem> {
    cx.require(Role::Admin)?;
    let (limit, before) = asked(&query)?;
    let changes = app.db.read(&cx).await?.settings_history(before, one_more(limit)).await?;
    Ok(axum::Json(page(changes, limit)))
}

pub(super) async fn roll_own_back(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Submitted { body, once }: Submitted<Rollback>,
) -> Result<Answer, Problem> {
    cx.require(Role::Admin)?;
    let (mut tx, now, by) = (app.db.begin(&cx).await?, app.now(), cx.principal().actor());
    if let Some(answer) = once.claim(&mut tx, Memory::Tenant, &by, now).await? {
        return Ok(answer);
    }
    let expected = expected(&preconditions, tx.settings().await?.version)?;
    let changed = tx.roll_settings_back(&cx, app.configs.settings(), body.version()?, expected).await.map_err(placed)?;
    let settings = app.configs.settings().effective(&app.configs.plan(&cx).await?, &changed.layer);
    let answer = Answer::ok(&Shown { version: changed.version, settings: &settings }, etag(changed.version))?;
    once.remember(&mut tx, Memory::Tenant, &by, &answer).await?;
    commit_own(&app, tx).await?;
    Ok(answer)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<Response, Problem> {
    let tenant = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &tenant, "read a tenant's settings").await?;
    let (config, version) = app.configs.look(&mut tx, tenant.id, &tenant.plan).await?;
    Ok(([(ETAG, etag(version))], axum::Json(Shown { version, settings: &config })).into_response())
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    let tenant = find(&app, &tenant).await?;
    let mut tx = begin_about(&app, &by, &tenant, "change a tenant's settings").await?;
    let expected = expected(&preconditions, tx.settings(tenant.id).await?.version)?;
    tx.change_settings(tenant.id, app.configs.settings(), &body.settings, expected).await.map_err(placed)?;
    let answer = answer(&app, &mut tx, &tenant).await?;
    commit(&app, tx).await?;
    Ok(answer)
}

pub(super) async fn history(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<ConfigChange>>, Problem> {
    let tenant = find(&app, &tenant).await?;
    let (limit, before) = asked(&query)?;
    let mut tx = begin_about(&app, &by, &tenant, "read the history of a tenant's settings").await?;
    let changes = tx.settings_history(tenant.id, before, one_more(limit)).await?;
    Ok(axum::Json(page(changes, limit)))
}

pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Submitted { body, once }: Submitted<Rollback>,
) -> Result<Answer, Problem> {
    let tenant = find(&app, &tenant).await?;
    let (mut tx, now) = (begin_about(&app, &by, &tenant, "roll a tenant's settings back").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let expected = expected(&preconditions, tx.settings(tenant.id).await?.version)?;
    tx.roll_settings_back(tenant.id, app.configs.settings(), body.version()?, expected).await.map_err(placed)?;
    let answer = answer(&app, &mut tx, &tenant).await?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    commit(&app, tx).await?;
    Ok(answer)
}

async fn answer(app: &App, tx: &mut tenancy_sqlx::SystemTx, tenant: &Tenant) -> Result<Answer> {
    let (settings, version) = app.configs.look(tx, tenant.id, &tenant.plan).await?;
    Answer::ok(&Shown { version, settings: &settings }, etag(version))
}

/// What a plan sets, of what its tenants have not set themselves.
#[derive(Debug, Serialize)]
pub(super) struct OfPlan {
    plan: String,
    settings: Layer,
}

pub(super) async fn show_plan(
    State(app): State<Arc<App>>,
    by: By,
    Path(plan): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<OfPlan>, Problem> {
    plans().plan(&plan).map_err(|_| Error::not_found())?;
    let settings = begin(&app, &by, "read a plan's settings").await?.plan_settings(&plan).await?;
    Ok(axum::Json(OfPlan { plan, settings }))
}

pub(super) async fn change_plan(
    State(app): State<Arc<App>>,
    by: By,
    Path(plan): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    Json(body): Json<Change>,
) -> Result<axum::Json<OfPlan>, Problem> {
    plans().plan(&plan).map_err(|_| Error::not_found())?;
    let mut tx = begin(&app, &by, "change a plan's settings").await?;
    let settings = tx.change_plan_settings(&plan, app.configs.settings(), &body.settings).await.map_err(placed)?;
    commit(&app, tx).await?;
    Ok(axum::Json(OfPlan { plan, settings }))
}

/// The page's size, and the version before which it begins.
fn asked(query: &PageQuery) -> Result<(usize, Option<u64>)> {
    let before = query.before(List::Config)?;
    Ok((query.limit()?, u64::try_from(before.as_u128()).ok().filter(|version| i64::try_from(*version).is_ok())))
}

fn page(changes: Vec<ConfigChange>, limit: usize) -> Page<ConfigChange> {
    Page::from_one_more(changes, limit, List::Config, |change| Uuid::from_u128(u128::from(change.version)))
}
