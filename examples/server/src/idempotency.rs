//! `Idempotency-Key`: a POST that is sent again is done once.
//!
//! The key's row is written first, in the transaction of the work itself. A second request with the key waits for the first at the
//! row's primary key; if the first was committed it gets the stored answer, with `Idempotency-Replayed: true`, and if it was undone it
//! does the work. Only what was done is remembered: a refusal may be answered otherwise the next time.
//!
//! A key belongs to one actor of one tenant, or to the operators, for a day.

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderName, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use sqlx::{AssertSqlSafe, FromRow};
use tenancy_core::{Actor, Error, ErrorKind, Result};
use tenancy_sqlx::{Tx, from_sqlx};
use tenancy_tower::axum::Problem;

use crate::app::App;
use crate::extract::{body_bytes, json_bytes, json_or_nothing, parse_json};

static KEY: HeaderName = HeaderName::from_static("idempotency-key");
static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const KEPT: TimeDelta = TimeDelta::hours(24);

/// A POST: its JSON body, and what tells it from others.
#[derive(Debug)]
pub(crate) struct Submitted<T> {
    pub(crate) body: T,
    pub(crate) once: Once,
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Submitted<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let refuse = |error| Problem(error).into_response();
        let once = Once::new(&request).map_err(refuse)?;
        let bytes = json_bytes(request, app).await?;
        let body = parse_json(&bytes).map_err(refuse)?;
        Ok(Self { body, once: once.with_body(&bytes) })
    }
}

/// A POST whose JSON body may be left out.
#[derive(Debug)]
pub(crate) struct Perhaps<T> {
    pub(crate) body: T,
    pub(crate) once: Once,
}

impl<T: DeserializeOwned + Default> FromRequest<Arc<App>> for Perhaps<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let refuse = |error| Problem(error).into_response();
        let once = Once::new(&request).map_err(refuse)?;
        let bytes = json_or_nothing(request, app).await?;
        let body = if bytes.is_empty() { T::default() } else { parse_json(&bytes).map_err(refuse)? };
        Ok(Self { body, once: once.with_body(&bytes) })
    }
}

/// A POST that has no body.
#[derive(Debug)]
pub(crate) struct Command(pub(crate) Once);

impl FromRequest<Arc<App>> for Command {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let once = Once::new(&request)?;
        let bytes = body_bytes(request, app).await?;
        if !bytes.is_empty() {
            return Err(Error::invalid("body", "must be empty: this takes no body").into());
        }
        Ok(Self(once.with_body(&bytes)))
    }
}

/// Makes sure that one request is done once, if it has a key.
#[derive(Debug)]
pub(crate) struct Once {
    key: Option<String>,
    fingerprint: Sha256,
}

/// Which table remembers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Memory {
    /// The tenant of the transaction.
    Tenant,
    /// The operators.
    Operators,
}

impl Memory {
    const fn table(self) -> &'static str {
        match self {
            Self::Tenant => "idempotency_keys",
            Self::Operators => "operator_idempotency_keys",
        }
    }
}

impl Once {
    fn new(request: &Request) -> Result<Self> {
        let mut fingerprint = Sha256::new();
        // Neither a method nor a path has a line feed.
        fingerprint.update(format!("{}\n{}\n", request.method(), request.uri().path()));
        Ok(Self { key: key(request.headers())?, fingerprint })
    }

    fn with_body(mut self, body: &[u8]) -> Self {
        self.fingerprint.update(body);
        self
    }

    /// The answer to give instead of doing the work, if `actor` has had it done under this key.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if the key was used for another request; what the database says.
    pub(crate) async fn claim<S: Send + fmt::Debug>(
        &self,
        tx: &mut Tx<S>,
        memory: Memory,
        actor: &Actor,
        now: DateTime<Utc>,
    ) -> Result<Option<Answer>> {
        let Some(key) = &self.key else { return Ok(None) };
        let (table, actor) = (memory.table(), actor.to_string());
        let fingerprint: [u8; 32] = self.fingerprint.clone().finalize().into();
        let claim = format!(
            "insert into {table} as known (actor, key, fingerprint, created_at) values ($1, $2, $3, $4)
             on conflict on constraint {table}_pkey do update set fingerprint = excluded.fingerprint, created_at = excluded.created_at
              where known.created_at < $5"
        );
        let claim = sqlx::query(AssertSqlSafe(claim)).bind(&actor).bind(key).bind(&fingerprint[..]).bind(now).bind(now - KEPT);
        if claim.execute(&mut *tx).await.map_err(from_sqlx)?.rows_affected() == 1 {
            // Whoever adds a row also takes some old ones away, and waits for nobody who does the same.
            let forget = format!(
                "delete from {table} where (actor, key) in
                   (select actor, key from {table} where created_at < $1 order by created_at limit 100 for update skip locked)"
            );
            sqlx::query(AssertSqlSafe(forget)).bind(now - KEPT).execute(&mut *tx).await.map_err(from_sqlx)?;
            return Ok(None);
        }
        let recall = format!("select fingerprint, status, etag, location, body from {table} where actor = $1 and key = $2");
        let known: Stored = sqlx::query_as(AssertSqlSafe(recall)).bind(&actor).bind(key).fetch_one(&mut *tx).await.map_err(from_sqlx)?;
        if known.fingerprint != fingerprint {
            return Err(Error::new(ErrorKind::Conflict, "this Idempotency-Key was used for another request: use a new one"));
        }
        known.into_answer().map(Some)
    }

    /// Keeps `answer` with the work of the transaction.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn remember<S: Send + fmt::Debug>(
        &self,
        tx: &mut Tx<S>,
        memory: Memory,
        actor: &Actor,
        answer: &Answer,
    ) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        let remember =
            format!("update {} set status = $3, etag = $4, location = $5, body = $6 where actor = $1 and key = $2", memory.table());
        sqlx::query(AssertSqlSafe(remember))
            .bind(actor.to_string())
            .bind(key)
            .bind(answer.status.as_u16().cast_signed())
            .bind(&answer.etag)
            .bind(&answer.location)
            .bind(&answer.body)
            .execute(tx)
            .await
            .map(drop)
            .map_err(from_sqlx)
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>> {
    let mut values = headers.get_all(&KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if values.next().is_some() || !(1..=255).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid(KEY.as_str(), "must be one header of 1 to 255 visible ASCII characters"));
    }
    Ok(Some(text.to_owned()))
}

#[derive(FromRow)]
struct Stored {
    fingerprint: Vec<u8>,
    status: Option<i16>,
    etag: Option<String>,
    location: Option<String>,
    body: Option<String>,
}

impl Stored {
    fn into_answer(self) -> Result<Answer> {
        let status = self.status.and_then(|status| StatusCode::from_u16(status.cast_unsigned()).ok());
        match (status, self.body) {
            (Some(status), Some(body)) => Ok(Answer { status, etag: self.etag, location: self.location, body, replayed: true }),
            _ => Err(Error::new(ErrorKind::Internal, "an idempotency key has no answer")),
        }
    }
}

/// A JSON answer that can be stored.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    etag: Option<String>,
    location: Option<String>,
    body: String,
    replayed: bool,
}

impl Answer {
    /// 200, with an entity tag.
    pub(crate) fn ok(body: &impl Serialize, etag: String) -> Result<Self> {
        let body = serde_json::to_string(body).map_err(|e| Error::new(ErrorKind::Internal, "an answer can't be written").with_source(e))?;
        Ok(Self { status: StatusCode::OK, etag: Some(etag), location: None, body, replayed: false })
    }

    /// 200, for what has no version.
    pub(crate) fn plain(body: &impl Serialize) -> Result<Self> {
        Ok(Self { etag: None, ..Self::ok(body, String::new())? })
    }

    /// 201, for what is at `location` now.
    pub(crate) fn created(body: &impl Serialize, etag: String, location: String) -> Result<Self> {
        Ok(Self { status: StatusCode::CREATED, location: Some(location), ..Self::ok(body, etag)? })
    }

    /// 201, for what is at `location` now and has no version.
    pub(crate) fn made(body: &impl Serialize, location: String) -> Result<Self> {
        Ok(Self { etag: None, ..Self::created(body, String::new(), location)? })
    }

    /// 201, for what is part of something else and is at no place of its own.
    pub(crate) fn added(body: &impl Serialize) -> Result<Self> {
        Ok(Self { location: None, ..Self::made(body, String::new())? })
    }

    /// 202, for work whose progress is at `location`.
    pub(crate) fn accepted(body: &impl Serialize, location: String) -> Result<Self> {
        Ok(Self { status: StatusCode::ACCEPTED, location: Some(location), etag: None, ..Self::ok(body, String::new())? })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, [(CONTENT_TYPE, "application/json")], self.body).into_response();
        let headers = response.headers_mut();
        for (name, value) in [(ETAG, self.etag), (LOCATION, self.location)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        if self.replayed {
            headers.insert(REPLAYED.clone(), HeaderValue::from_static("true"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn fingerprint(method: &str, uri: &str, body: &[u8]) -> Vec<u8> {
        let request = Request::builder().method(method).uri(uri).body(Body::empty()).expect("a request");
        Once::new(&request).expect("no key").with_body(body).fingerprint.finalize().to_vec()
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let one = fingerprint("POST", "/api/v1/projects", b"{}");
        assert_eq!(one, fingerprint("POST", "/api/v1/projects", b"{}"));
        for other in [
            fingerprint("POST", "/api/v1/projects", b"{} "),
            fingerprint("POST", "/api/v1/project", b"s{}"),
            fingerprint("PUT", "/api/v1/projects", b"{}"),
            fingerprint("POST", "/api/v1/projects/x", b"{}"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn keys_are_short_and_visible() {
        let with = |value: &[u8]| key(&HeaderMap::from_iter([(KEY.clone(), HeaderValue::from_bytes(value).expect("a header"))]));
        assert_eq!(key(&HeaderMap::new()).expect("none"), None);
        assert_eq!(with(b"8e03978e-40d5-43e8").expect("valid").as_deref(), Some("8e03978e-40d5-43e8"));
        for bad in [&b""[..], b"a b", b"\xc3\xa9", "k".repeat(256).as_bytes()] {
            assert_eq!(with(bad).expect_err("refused").field(), Some("idempotency-key"));
        }
        let mut two = HeaderMap::new();
        two.append(&KEY, HeaderValue::from_static("a"));
        two.append(&KEY, HeaderValue::from_static("b"));
        assert!(key(&two).is_err());
    }
}
