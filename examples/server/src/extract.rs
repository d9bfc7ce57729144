//! What handlers are given: checked, bounded, and with a problem document where it can't be had.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tenancy_core::{Error, ErrorKind, Result, TenantContext};
use tenancy_tower::axum::{CurrentTenant, Problem};
use uuid::Uuid;

use crate::app::App;
use crate::edge::RequestId;
use crate::problem;

/// The caller's tenant context, under the request's id.
#[derive(Debug)]
pub(crate) struct Caller(pub(crate) TenantContext);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let CurrentTenant(cx) = <CurrentTenant as FromRequestParts<_>>::from_request_parts(parts, app).await?;
        Ok(Self(match parts.extensions.get::<RequestId>() {
            Some(RequestId(id)) => cx.with_request_id(*id),
            None => cx,
        }))
    }
}

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// A JSON body.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        let bytes = json_bytes(request, app).await?;
        Ok(Self(parse_json(&bytes).map_err(|e| Problem(e).into_response())?))
    }
}

/// What a form of a page has sent.
#[derive(Debug)]
pub(crate) struct Form<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Form<T> {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        if !is_of(FORM, request.headers()) {
            return Err(problem::unsupported_media_type(FORM));
        }
        let bytes = body_bytes(request, app).await.map_err(|e| Problem(e).into_response())?;
        parse_form(&bytes, "body").map(Self).map_err(|e| Problem(e).into_response())
    }
}

/// The bytes of a body that says it is JSON.
pub(crate) async fn json_bytes(request: Request, app: &App) -> Result<Vec<u8>, Response> {
    if !is_of(JSON, request.headers()) {
        return Err(problem::unsupported_media_type(JSON));
    }
    body_bytes(request, app).await.map_err(|e| Problem(e).into_response())
}

/// The bytes of a body that says it is JSON, or of none.
pub(crate) async fn json_or_nothing(request: Request, app: &App) -> Result<Vec<u8>, Response> {
    let json = is_of(JSON, request.headers());
    let bytes = body_bytes(request, app).await.map_err(|e| Problem(e).into_response())?;
    if json || bytes.is_empty() { Ok(bytes) } else { Err(problem::unsupported_media_type(JSON)) }
}

/// The bytes of a body, whatever it is.
pub(crate) async fn body_bytes(request: Request, app: &App) -> Result<Vec<u8>> {
    bytes_up_to(request, app.max_body).await
}

/// The bytes of a body of at most `limit` bytes, whatever it is.
pub(crate) async fn bytes_up_to(request: Request, limit: usize) -> Result<Vec<u8>> {
    let too_large = || Error::new(ErrorKind::TooLarge, format!("the body must have at most {limit} bytes"));
    if content_length(request.headers()).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut stream = request.into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Error::invalid("body", "was not received whole").with_source(error))?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The length that the body says it has.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_of(media: &str, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(media)
}

/// The value in `bytes`, which must be an object; what is wrong is told with its path.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // serde would also take an array for a struct: its fields in their order, without their names.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::invalid("body", "must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        invalid(&path, "body", error.inner().to_string())
    })?;
    json.end().map_err(|error| Error::invalid("body", error.to_string()))?;
    Ok(value)
}

fn invalid(path: &str, whole: &'static str, why: String) -> Error {
    if path.is_empty() || path == "." || path == "?" { Error::invalid(whole, why) } else { Error::invalid(path.to_owned(), why) }
}

/// For the fields of a change: absent leaves a value as it is, and `null` is not a way to say so.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// The query. A list without filters takes [`PageQuery`](crate::page::PageQuery); unknown parameters are refused.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_form(parts.uri.query().unwrap_or_default().as_bytes(), "query").map(Self).map_err(Problem)
    }
}

/// For paths that take no query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoQuery {}

fn parse_form<T: DeserializeOwned>(form: &[u8], whole: &'static str) -> Result<T> {
    let pairs = url::form_urlencoded::parse(form);
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map_err(|error| {
        let path = error.path().to_string();
        invalid(&path, whole, error.inner().to_string())
    })
}

/// What the path names. What can't be a name here is answered as something that is not there.
#[derive(Debug)]
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|rejection| Problem(Error::not_found().with_source(rejection)))
    }
}

/// An id in a path: a UUID in its usual form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Id(Uuid);

impl Deref for Id {
    type Target = Uuid;

    fn deref(&self) -> &Uuid {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let uuid = Some(&text).filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok());
        uuid.map(Self).ok_or_else(|| serde::de::Error::custom("not a UUID"))
    }
}

/// One line of text for people: `max` characters, at least one, no control characters, and no white space around it.
pub(crate) fn check_line(field: &'static str, text: &str, max: usize) -> Result<()> {
    let length = text.chars().count();
    if length == 0 || length > max || text.trim() != text || text.chars().any(char::is_control) {
        return Err(Error::invalid(field, format!("must have 1 to {max} characters, no control characters, and no white space around it")));
    }
    Ok(())
}

/// Free text of at most `max` characters.
pub(crate) fn check_text(field: &'static str, text: &str, max: usize) -> Result<()> {
    if text.chars().count() > max || text.contains('\0') {
        return Err(Error::invalid(field, format!("must have at most {max} characters, and not U+0000")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageQuery;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        #[serde(default, deserialize_with = "present")]
        plan: Option<String>,
        #[serde(default)]
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only its type matters")]
        size: u8,
    }

    #[test]
    fn json_is_refused_with_the_path_of_the_field() {
        let sample: Sample = parse_json(br#"{"name":"x"}"#).expect("valid");
        assert!(sample.name == "x" && sample.plan.is_none() && sample.inner.is_none());
        for (json, field) in [
            (&br#"{"name":1}"#[..], "name"),
            (br#"{"name":"x","plan":null}"#, "plan"),
            (br#"{"name":"x","inner":{"size":"y"}}"#, "inner.size"),
            (br#"{"name":"x","inner":{"size":256}}"#, "inner.size"),
            (br#"{"name":"x","tenant_id":"y"}"#, "tenant_id"),
            (br#"{"name":"x","name":"y"}"#, "body"),
            (b"{}", "body"),
            (b"", "body"),
            (b"[]", "body"),
            (b"null", "body"),
            (br#"{"name":"x"} x"#, "body"),
            (b"{\"name\":\"\xff\"}", "name"),
        ] {
            let error = parse_json::<Sample>(json).expect_err("refused");
            assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some(field)), "{} {error}", String::from_utf8_lossy(json));
        }
        assert!(parse_json::<Sample>(br#" ["x", "y"]"#).is_err(), "fields by their place");
        assert!(parse_json::<Sample>("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert!(parse_form::<NoQuery>(b"", "query").is_ok() && parse_form::<PageQuery>(b"limit=3", "query").is_ok());
        assert!(parse_form::<NoQuery>(b"a=1", "query").is_err());
        for bad in ["limit=x", "limit=-1", "limit=", "limit=1&limit=2", "tenant_id=x", "LIMIT=1"] {
            let error = parse_form::<PageQuery>(bad.as_bytes(), "query").expect_err(bad);
            assert!(error.field().is_some(), "{bad}");
        }
    }

    #[test]
    fn only_json_is_json() {
        let with = |value: &str| HeaderMap::from_iter([(CONTENT_TYPE, value.parse().expect("a header"))]);
        assert!(is_of(JSON, &with("application/json")) && is_of(JSON, &with("Application/JSON; charset=utf-8")));
        for other in ["text/plain", "application/jsonx", "multipart/form-data", "", "application/x-www-form-urlencoded"] {
            assert!(!is_of(JSON, &with(other)), "{other}");
        }
        assert!(!is_of(JSON, &HeaderMap::new()));
    }

    #[test]
    fn lines_are_plain() {
        assert!(check_line("name", "Straße 1", 200).is_ok());
        for bad in ["", " a", "a ", "a\nb", "a\0", &"x".repeat(201)] {
            assert_eq!(check_line("name", bad, 200).expect_err(bad).field(), Some("name"));
        }
        assert!(check_text("content", "a\n\tb", 10).is_ok());
        assert!(check_text("content", "a\0b", 10).is_err() && check_text("content", &"é".repeat(11), 10).is_err());
    }
}
