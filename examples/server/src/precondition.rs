//! `ETag`, `If-Match` and `If-None-Match` (RFC 9110): a change applies to the version that its author has read.

use axum::extract::FromRequestParts;
use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use tenancy_core::{Error, ErrorKind, Result};
use tenancy_tower::axum::Problem;

/// The entity tag of a version.
pub(crate) fn etag(version: impl std::fmt::Display) -> String {
    format!("\"{version}\"")
}

/// The answer to a change of something that has changed since it was read.
pub(crate) fn mismatch() -> Error {
    Error::new(ErrorKind::VersionMismatch, "it has changed since it was read: read it again")
}

/// What a request expects of the current version; both are optional.
#[derive(Debug, Default)]
pub(crate) struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// As written, quotes and `W/` included.
    Of(Vec<String>),
}

impl Preconditions {
    /// The versions that a change may apply to; `None` is any.
    pub(crate) fn versions(&self) -> Option<Vec<i64>> {
        match &self.if_match {
            Some(Tags::Of(tags)) => Some(tags.iter().filter_map(|tag| version(tag)).collect()),
            Some(Tags::Any) | None => None,
        }
    }

    /// Whether a change may apply where `current` is the entity tag of what is there, if anything is.
    pub(crate) fn permit(&self, current: Option<&str>) -> bool {
        let expected = match (&self.if_match, current) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(Tags::Any), Some(_)) => true,
            (Some(Tags::Of(tags)), Some(current)) => tags.iter().any(|tag| tag == current),
        };
        expected && !current.is_some_and(|current| self.not_modified(current))
    }

    /// Whether the caller has `etag` already, so that 304 is the answer to a GET.
    pub(crate) fn not_modified(&self, etag: &str) -> bool {
        match &self.if_none_match {
            Some(Tags::Any) => true,
            Some(Tags::Of(tags)) => tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag),
            None => false,
        }
    }
}

/// The version in a strong tag that [`etag`] could have made; any other tag is legal, and matches nothing.
fn version(tag: &str) -> Option<i64> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    let version = digits.parse().ok()?;
    (etag(version) == *tag).then_some(version)
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>> {
    let malformed = || Error::invalid(name.to_string(), "must be * or a list of entity tags such as \"1\"");
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        let mut rest = value.to_str().map_err(|_| malformed())?.trim();
        if rest == "*" {
            return Ok(Some(Tags::Any));
        }
        loop {
            let opaque = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"').ok_or_else(malformed)?;
            let end = opaque.find('"').ok_or_else(malformed)?;
            let (tag, after) = rest.split_at(rest.len() - opaque.len() + end + 1);
            all.push(tag.to_owned());
            match after.trim_start().strip_prefix(',') {
                Some(next) => rest = next.trim_start(),
                None if after.trim().is_empty() => break,
                None => return Err(malformed()),
            }
        }
    }
    Ok((!all.is_empty()).then_some(Tags::Of(all)))
}

impl<S: Send + Sync> FromRequestParts<S> for Preconditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self { if_match: tags(&parts.headers, &IF_MATCH)?, if_none_match: tags(&parts.headers, &IF_NONE_MATCH)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &HeaderName, value: &str) -> Result<Option<Tags>> {
        let mut headers = HeaderMap::new();
        headers.append(name, value.parse().expect("a header"));
        tags(&headers, name)
    }

    fn if_match(value: &str) -> Option<Vec<i64>> {
        Preconditions { if_match: with(&IF_MATCH, value).expect(value), ..Preconditions::default() }.versions()
    }

    #[test]
    fn if_match_compares_strongly() {
        assert_eq!(Preconditions::default().versions(), None);
        assert_eq!(if_match("*"), None);
        assert_eq!(if_match("\"3\""), Some(vec![3]));
        assert_eq!(if_match("\"3\" , \"7\",W/\"9\""), Some(vec![3, 7]));
        // Tags that nothing here has: they match no version, and do not match every version.
        for foreign in ["W/\"3\"", "\"abc\"", "\"+3\"", "\"03\"", "\"\"", "\"3,4\"", "\"99999999999999999999\""] {
            assert_eq!(if_match(foreign), Some(vec![]), "{foreign}");
        }
    }

    #[test]
    fn malformed_tags_are_refused_and_not_ignored() {
        for bad in ["3", "\"3", "3\"", "\"3\" \"4\"", "\"3\",", ",", "", "w/\"3\"", "*,\"3\""] {
            assert_eq!(with(&IF_MATCH, bad).expect_err(bad).field(), Some("if-match"), "{bad}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        let not_modified = |value: &str, etag: &str| {
            Preconditions { if_none_match: with(&IF_NONE_MATCH, value).expect(value), ..Preconditions::default() }.not_modified(etag)
        };
        assert!(not_modified("*", "\"1\"") && not_modified("W/\"1\"", "\"1\"") && not_modified("\"0\", \"1\"", "\"1\""));
        assert!(!not_modified("\"2\"", "\"1\"") && !Preconditions::default().not_modified("\"1\""));
    }

    #[test]
    fn a_change_may_ask_for_something_or_for_nothing_to_be_there() {
        let permit = |name: &HeaderName, value: &str, current| {
            let tags = with(name, value).expect(value);
            let both = if *name == IF_MATCH {
                Preconditions { if_match: tags, if_none_match: None }
            } else {
                Preconditions { if_match: None, if_none_match: tags }
            };
            both.permit(current)
        };
        for (name, value, absent, same, other) in [
            (&IF_MATCH, "*", false, true, true),
            (&IF_MATCH, "\"a\"", false, true, false),
            (&IF_MATCH, "W/\"a\"", false, false, false),
            (&IF_NONE_MATCH, "*", true, false, false),
            (&IF_NONE_MATCH, "\"a\"", true, false, true),
        ] {
            let all = (permit(name, value, None), permit(name, value, Some("\"a\"")), permit(name, value, Some("\"b\"")));
            assert_eq!(all, (absent, same, other), "{name}: {value}");
        }
        assert!(Preconditions::default().permit(None) && Preconditions::default().permit(Some("\"a\"")));
    }
}
