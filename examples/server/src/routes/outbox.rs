//! Messages that were not delivered, for operators.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use tenancy_core::{Error, Result};
use tenancy_sqlx::outbox::{MessageState, Undelivered};
use tenancy_tower::axum::Problem;
use uuid::Uuid;

use super::tenants::begin;
use crate::app::{App, uncancelled};
use crate::extract::{NoQuery, Path, Query};
use crate::idempotency::{Answer, Command, Memory};
use crate::operator::By;
use crate::page::{List, Page, decode};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutboxQuery {
    state: Option<MessageState>,
    limit: Option<usize>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Query(query): Query<OutboxQuery>,
) -> Result<axum::Json<Page<Undelivered>>, Problem> {
    let limit = query.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(Error::invalid("limit", "must be 1 to 200").into());
    }
    let before = query.cursor.map(|cursor| decode(List::Outbox, &cursor)).transpose()?;
    let before = before.map(|id| i64::try_from(id.as_u128()).unwrap_or(i64::MAX));
    let mut tx = begin(&app, &by, "list messages that were not delivered").await?;
    let state = query.state.unwrap_or(MessageState::Waiting);
    let items = tx.undelivered(state, before, u32::try_from(limit + 1).unwrap_or(u32::MAX)).await?;
    let number = |message: &Undelivered| Uuid::from_u128(u128::from(message.id.unsigned_abs()));
    Ok(axum::Json(Page::from_one_more(items, limit, List::Outbox, number)))
}

pub(super) async fn redeliver(
    State(app): State<Arc<App>>,
    by: By,
    Path(message): Path<i64>,
    Query(NoQuery {}): Query<NoQuery>,
    Command(once): Command,
) -> Result<Answer, Problem> {
    let (mut tx, now) = (begin(&app, &by, "deliver a message again").await?, app.now());
    let by = tx.actor().clone();
    if let Some(answer) = once.claim(&mut tx, Memory::Operators, &by, now).await? {
        return Ok(answer);
    }
    let answer = Answer::plain(&tx.redeliver(message).await?)?;
    once.remember(&mut tx, Memory::Operators, &by, &answer).await?;
    uncancelled(tx.commit()).await?;
    Ok(answer)
}
