//! The operators themselves, for those of them who are admins.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tenancy_core::{Email, Error, NewOperator, Operator, OperatorChange, OperatorRole, Result, TokenDays};
use tenancy_sqlx::{SystemTx, Token};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::projects::one_more;
use super::tenants::begin;
use crate::app::App;
use crate::extract::{Json, NoQuery, Path, Query, present};
use crate::idempotency::{Answer, Memory, Submitted};
use crate::operator::By;
use crate::page::{List, Page, PageQuery};
use crate::precondition::{Preconditions, etag, mismatch};

/// An operator with their token, which is shown once: an answer that is given again has none.
#[derive(Debug, Serialize)]
struct WithToken<'a> {
    #[serde(flatten)]
    operator: &'a Operator,
    token: Option<&'a str>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<Operator>>, Problem> {
    let (limit, before) = (query.limit()?, query.before(List::Operators)?);
    let found = begin(&app, &by, "list operators").await?.operators(before, one_more(limit)).await?;
    Ok(axum::Json(Page::from_one_more(found, limit, List::Operators, |operator| operator.id)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Creation {
    name: String,
    email: String,
    role: OperatorRole,
    #[serde(default, deserialize_with = "present")]
    expires_in_days: Option<u16>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    by: By,
    Query(NoQuery {}): Query<NoQuery>,
    Submitted { body, once }: Submitted<Creation>,
) -> Result<Answer, Problem> {
    let new = NewOperator::new(body.name, body.email.parse::<Email>()?, body.role).with_token_for(days(body.expires_in_days)?);
    let (mut tx, now) = (begin(&app, &by, "add an operator").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let (operator, token) = tx.create_operator(&new, now).await?;
    let answer = |token: Option<&Token>| {
        let body = WithToken { operator: &operator, token: token.map(Token::expose) };
        Answer::created(&body, etag(operator.version), format!("/api/v1/operators/{}", operator.id))
    };
    once.remember(&mut tx, Memory::Operators, &by, &answer(None)?).await?;
    tx.commit().await?;
    Ok(answer(Some(&token))?)
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    by: By,
    Path(operator): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<Response, Problem> {
    let found = find(&mut begin(&app, &by, "show an operator").await?, id(&operator)?).await?;
    let etag = etag(found.version);
    if preconditions.not_modified(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], axum::Json(found)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default, deserialize_with = "present")]
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    email: Option<Email>,
    #[serde(default, deserialize_with = "present")]
    role: Option<OperatorRole>,
    #[serde(default, deserialize_with = "present")]
    disabled: Option<bool>,
}

pub(super) async fn change(
    State(app): State<Arc<App>>,
    by: By,
    Path(operator): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Json(body): Json<Change>,
) -> Result<Answer, Problem> {
    let mut change = OperatorChange::default();
    (change.name, change.email, change.role, change.disabled) = (body.name, body.email, body.role, body.disabled);
    let mut tx = begin(&app, &by, "change an operator").await?;
    let id = id(&operator)?;
    let expected = expected(&mut tx, id, &preconditions).await?;
    let operator = tx.update_operator(id, &change, expected, by.is_bootstrap()).await?;
    tx.commit().await?;
    Ok(Answer::ok(&operator, etag(operator.version))?)
}

/// They stay as a row, by which audit logs can be read. Doing it again changes nothing.
pub(super) async fn disable(
    State(app): State<Arc<App>>,
    by: By,
    Path(operator): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
) -> Result<StatusCode, Problem> {
    let mut tx = begin(&app, &by, "disable an operator").await?;
    let id = id(&operator)?;
    let expected = expected(&mut tx, id, &preconditions).await?;
    if find(&mut tx, id).await?.disabled_at.is_none() {
        tx.update_operator(id, &OperatorChange::disable(), expected, by.is_bootstrap()).await?;
        tx.commit().await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    #[serde(default, deserialize_with = "present")]
    expires_in_days: Option<u16>,
}

pub(super) async fn rotate(
    State(app): State<Arc<App>>,
    by: By,
    Path(operator): Path<String>,
    Query(NoQuery {}): Query<NoQuery>,
    preconditions: Preconditions,
    Submitted { body, once }: Submitted<Rotation>,
) -> Result<Answer, Problem> {
    let (lasts, id) = (days(body.expires_in_days)?, id(&operator)?);
    let (mut tx, now) = (begin(&app, &by, "give an operator another token").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let expected = expected(&mut tx, id, &preconditions).await?;
    let (operator, token) = tx.rotate_operator_token(id, lasts, expected, now).await?;
    let answer =
        |token: Option<&Token>| Answer::ok(&WithToken { operator: &operator, token: token.map(Token::expose) }, etag(operator.version));
    once.remember(&mut tx, Memory::Operators, &by, &answer(None)?).await?;
    tx.commit().await?;
    Ok(answer(Some(&token))?)
}

fn days(days: Option<u16>) -> Result<TokenDays> {
    days.map_or_else(|| Ok(TokenDays::default()), TokenDays::new)
}

fn id(operator: &str) -> Result<Uuid> {
    operator.parse().map_err(|_| Error::not_found())
}

async fn find(tx: &mut SystemTx, id: Uuid) -> Result<Operator> {
    tx.operator(id).await?.ok_or_else(Error::not_found)
}

/// The one version that a change may apply to, of those in `If-Match`.
async fn expected(tx: &mut SystemTx, id: Uuid, preconditions: &Preconditions) -> Result<Option<u64>> {
    let Some(versions) = preconditions.versions() else { return Ok(None) };
    let found = find(tx, id).await?;
    if versions.contains(&found.version.cast_signed()) { Ok(Some(found.version)) } else { Err(mismatch()) }
}
