//! Feature flags: definitions for operators, and what they are for a tenant for its members.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tenancy_core::flags::{Evaluation, FlagDefinition};
use tenancy_core::{Error, Role};
use tenancy_sqlx::flags::DefinedFlag;
use tenancy_tower::axum::Problem;

use super::tenants::{begin, commit};
use crate::app::App;
use crate::extract::{Caller, Json, NoQuery, Path, Query};
use crate::idempotency::Answer;
use crate::operator::By;
use crate::page::Page;
use crate::plans::plans;
use crate::precondition::{Preconditions, etag, mismatch};

/// By their names.
#[derive(Debug, Serialize)]
pub(super) struct Evaluated {
    flags: BTreeMap<String, Evaluation>,
}

pub(super) async fn own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Evaluated>, Problem> {
    cx.require(Role::Viewer)?;
    Ok(axum::Json(Evaluated { flags: app.flags.all(&cx).await? }))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
) -> Result<axum::Json<Page<DefinedFlag>>, Problem> {
    let items = begin(&app, &by, "list flags").await?.flags().await?;
    Ok(axum::Json(Page { items, next_cursor: None }))
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path(flag): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    let found = begin(&app, &by, "read a flag").await?.flag(&flag).await?.ok_or_else(Error::not_found)?;
    let tag = etag(found.version);
    if preconditions.not_modified(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    Ok(([(ETAG, tag)], axum::Json(found)).into_response())
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    by: By,
    Path(flag): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<FlagDefinition>,
) -> Result<Answer, Problem> {
    for (at, plan) in body.plans.iter().enumerate() {
        plans().plan(plan).map_err(|error| Error::invalid(format!("plans[{at}]"), error.message().to_owned()))?;
    }
    let mut tx = begin(&app, &by, "define a flag").await?;
    let current = tx.lock_flag(&flag).await?.map(|flag| etag(flag.version));
    if !preconditions.permit(current.as_deref()) {
        return Err(mismatch().into());
    }
    let defined = tx.define_flag(&flag, &body).await?;
    commit(&app, tx).await?;
    Ok(Answer::ok(&defined, etag(defined.version))?)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    by: By,
    Path(flag): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    let mut tx = begin(&app, &by, "remove a flag").await?;
    let current = tx.lock_flag(&flag).await?.ok_or_else(Error::not_found)?;
    if !preconditions.permit(Some(&etag(current.version))) {
        return Err(mismatch().into());
    }
    tx.remove_flag(&flag).await?;
    commit(&app, tx).await?;
    Ok(StatusCode::NO_CONTENT)
}
