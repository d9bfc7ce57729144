//! Whether a request comes from a page of this server: against pages elsewhere that make a browser ask in its user's name.
//!
//! 1. `Sec-Fetch-Site`, which browsers set and pages can't, decides where it is there: `same-origin` and `none` (the user) pass.
//! 2. Else the host of `Origin` must be `Host`.
//! 3. With neither it is not known. Requests that a cookie would let do something are refused then; others are no browser's.
//!
//! # Deployment caveat
//! Browsers send `Sec-Fetch-Site` to `https` and to this machine alone. A proxy must pass `Host` on as the client sent it.

use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};
use tenancy_core::{Error, ErrorKind, Result};

static SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Site {
    Same,
    Cross,
    Unknown,
}

/// Refuses what does not say that it comes from here.
///
/// # Errors
/// [`Forbidden`](ErrorKind::Forbidden).
pub(crate) fn require_same(headers: &HeaderMap) -> Result<()> {
    if site(headers) == Site::Same { Ok(()) } else { Err(refused()) }
}

/// Refuses what says that it comes from elsewhere.
///
/// # Errors
/// [`Forbidden`](ErrorKind::Forbidden).
pub(crate) fn refuse_cross(headers: &HeaderMap) -> Result<()> {
    if site(headers) == Site::Cross { Err(refused()) } else { Ok(()) }
}

fn refused() -> Error {
    Error::new(ErrorKind::Forbidden, "this request comes from another site")
}

fn site(headers: &HeaderMap) -> Site {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next().map(HeaderValue::as_bytes);
        // Two of a kind say nothing.
        if values.next().is_some() { Some(&b""[..]) } else { first }
    };
    match (one(&SEC_FETCH_SITE), one(&ORIGIN)) {
        (Some(b"same-origin" | b"none"), _) => Site::Same,
        (Some(_), _) => Site::Cross,
        (None, None) => Site::Unknown,
        (None, Some(origin)) => {
            let host = origin.strip_prefix(b"https://").or_else(|| origin.strip_prefix(b"http://")).unwrap_or_default();
            let here = one(&HOST).is_some_and(|here| !here.is_empty() && here.eq_ignore_ascii_case(host));
            if here { Site::Same } else { Site::Cross }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_that_it_is_from_here_is() {
        let of = |given: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            site(&headers)
        };
        let (fetch, origin, host) = ("sec-fetch-site", "origin", ("host", "app.example.com:8080"));
        for same in ["same-origin", "none"] {
            assert_eq!(of(&[(fetch, same), (origin, "null"), host]), Site::Same, "a page that sends no referrer");
        }
        for cross in ["same-site", "cross-site", "", "Same-Origin"] {
            assert_eq!(of(&[(fetch, cross), (origin, "https://app.example.com:8080"), host]), Site::Cross, "{cross}");
        }
        assert_eq!(of(&[(fetch, "none"), (fetch, "none"), host]), Site::Cross);
        assert_eq!(of(&[(origin, "https://app.example.com:8080"), host]), Site::Same);
        for elsewhere in [
            "null",
            "",
            "https://",
            "https://app.example.com",
            "https://evil.example",
            "app.example.com:8080",
            "https://app.example.com:8080.evil",
        ] {
            assert_eq!(of(&[(origin, elsewhere), host]), Site::Cross, "{elsewhere}");
        }
        assert_eq!(of(&[(origin, "https://")]), Site::Cross, "no host");
        assert_eq!(of(&[(origin, "https://a"), (origin, "https://a"), ("host", "a")]), Site::Cross);
        assert_eq!(of(&[host]), Site::Unknown);
        assert!(require_same(&HeaderMap::new()).is_err() && refuse_cross(&HeaderMap::new()).is_ok());
    }
}
