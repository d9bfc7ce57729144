//! The audit log: every tenant's for operators, its own for a tenant's admins. A page as JSON, or all of it as NDJSON.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use futures_util::stream;
use serde::Deserialize;
use tenancy_core::{Error, ErrorKind, Outcome, Result, Role, TenantContext, TenantId};
use tenancy_sqlx::SystemTx;
use tenancy_sqlx::audit::{AuditQuery, Recorded};
use tenancy_tower::axum::Problem;

use super::tenants::{begin_about, find};
use crate::app::App;
use crate::extract::{Caller, Path, Query};
use crate::operator::By;
use crate::page::{List, Page, decode};

const NDJSON: &str = "application/x-ndjson";
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    limit: Option<usize>,
    cursor: Option<String>,
    action: Option<String>,
    outcome: Option<Outcome>,
    since: Option<DateTime<Utc>>,
    until: Option<DateTime<Utc>>,
}

impl Filter {
    fn query(self, streamed: bool) -> Result<AuditQuery> {
        let mut query = AuditQuery::default();
        query.limit = match self.limit {
            Some(_) if streamed => return Err(Error::invalid("limit", "must be left out where everything is asked for, as NDJSON")),
            None if streamed => MAX_LIMIT,
            None => DEFAULT_LIMIT,
            Some(limit) if (1..=MAX_LIMIT).contains(&limit) => limit,
            Some(_) => return Err(Error::invalid("limit", "must be 1 to 200")),
        };
        let named = |action: &String| action.len() <= 100 && action.bytes().all(|b| matches!(b, b'a'..=b'z' | b'_' | b'.'));
        if !self.action.as_ref().is_none_or(named) {
            return Err(Error::invalid("action", "must be such as tenant.update"));
        }
        if self.since.zip(self.until).is_some_and(|(since, until)| since >= until) {
            return Err(Error::invalid("since", "must be before `until`"));
        }
        query.after = self.cursor.map(|cursor| decode(List::Audit, &cursor)).transpose()?;
        (query.action, query.outcome, query.since, query.until) = (self.action, self.outcome, self.since, self.until);
        Ok(query)
    }
}

/// Where the events come from, a batch at a time.
enum Source {
    /// A transaction for each batch: a reader that is slow must not hold a connection that requests need.
    Own(Arc<App>, TenantContext),
    /// One transaction, since each one is an event of its own.
    Any(Box<SystemTx>, TenantId),
}

impl Source {
    async fn read(&mut self, query: &AuditQuery) -> Result<Vec<Recorded>> {
        match self {
            Self::Own(app, cx) => app.db.read(cx).await?.audit_log(query).await,
            Self::Any(tx, tenant) => tx.audit_log(*tenant, query).await,
        }
    }
}

pub(super) async fn own(
    State(app): State<Arc<App>>,
    Caller(cx): Caller,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    cx.require(Role::Admin)?;
    let streamed = wants_stream(&headers);
    let query = filter.query(streamed)?;
    Ok(answer(Source::Own(app, cx), query, streamed).await?)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    by: By,
    Path(tenant): Path<String>,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let tenant = find(&app, &tenant).await?;
    let streamed = wants_stream(&headers);
    let query = filter.query(streamed)?;
    let tx = begin_about(&app, &by, &tenant, "read a tenant's audit log").await?;
    Ok(answer(Source::Any(Box::new(tx), tenant.id), query, streamed).await?)
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().eq_ignore_ascii_case(NDJSON.as_bytes()))
}

async fn answer(mut source: Source, mut query: AuditQuery, streamed: bool) -> Result<Response> {
    let limit = query.limit;
    if !streamed {
        query.limit += 1;
        let events = source.read(&query).await?;
        return Ok(axum::Json(Page::from_one_more(events, limit, List::Audit, |event| event.id)).into_response());
    }
    // The first batch is read before the head is sent, so that what fails at once is a problem document.
    let first = source.read(&query).await?;
    let batches = stream::try_unfold((source, query, Some(first)), move |(mut source, mut query, ready)| async move {
        let events = match ready {
            Some(events) => events,
            None => source.read(&query).await?,
        };
        let Some(last) = events.last() else { return Ok::<_, Error>(None) };
        query.after = Some(last.id);
        Ok(Some((lines(&events)?, (source, query, None))))
    });
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(batches)).into_response())
}

fn lines(events: &[Recorded]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for event in events {
        serde_json::to_writer(&mut lines, event)
            .map_err(|source| Error::new(ErrorKind::Internal, "an event can't be written as JSON").with_source(source))?;
        lines.push(b'\n');
    }
    Ok(lines)
}
