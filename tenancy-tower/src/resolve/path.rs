//! The tenant in the path: `/t/acme/…`.

use http::request::Parts;
use tenancy_core::{Error, ErrorKind, Result, TenantHint};

use super::{Identified, ResolveTenant};

/// Reads a tenant's slug or UUID from the path segment behind a prefix. The path is left as it is.
///
/// - A path outside the prefix, and the prefix alone, name no tenant.
/// - Nothing is decoded: a slug needs no percent-encoding, so a segment that has any is refused, and so is a prefix that is only right
///   when decoded.
/// - A path with a `.` or `..` segment (encoded or not), or with an empty one before the tenant, is refused: another component could
///   read another tenant in it.
#[derive(Debug, Clone)]
pub struct PathResolver {
    prefix: Box<str>,
}

impl PathResolver {
    /// Tenants live below `prefix`, such as `/t`.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if `prefix` is not one or more segments of letters, digits, `-`, `_`, each after a
    /// slash.
    pub fn new(prefix: &str) -> Result<Self> {
        let segment = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        match prefix.strip_prefix('/') {
            Some(rest) if rest.split('/').all(segment) => Ok(Self { prefix: rest.into() }),
            _ => Err(Error::new(ErrorKind::Misconfigured, format!("{prefix:?} is no path prefix: give one such as \"/t\""))),
        }
    }
}

impl ResolveTenant for PathResolver {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        let Some(path) = request.uri.path().strip_prefix('/') else { return Ok(None) };
        if path.split('/').any(|segment| decodes_to(segment, ".") || decodes_to(segment, "..")) {
            return Err(refused("the path has dot segments"));
        }
        if path.starts_with('/') {
            return Err(refused("the path begins with an empty segment"));
        }
        let mut segments = path.split('/');
        let mut encoded = false;
        for wanted in self.prefix.split('/') {
            match segments.next() {
                Some(segment) if segment == wanted => {}
                Some(segment) if decodes_to(segment, wanted) => encoded = true,
                _ => return Ok(None),
            }
        }
        if encoded {
            return Err(refused("the path's prefix is percent-encoded"));
        }
        match segments.next() {
            None => Ok(None),
            Some(segment) => {
                let hint: TenantHint = segment.parse().map_err(|malformed| Error::tenant_not_found().with_source(malformed))?;
                Ok(Some(Identified::claimed(hint)))
            }
        }
    }
}

/// Whether `segment`, percent-decoded once, is `wanted`.
fn decodes_to(segment: &str, wanted: &str) -> bool {
    let (mut rest, mut wanted) = (segment.as_bytes(), wanted.bytes());
    loop {
        let byte = match rest {
            [] => return wanted.next().is_none(),
            [b'%', high, low, tail @ ..] => {
                rest = tail;
                let digit = |b: u8| char::from(b).to_digit(16);
                digit(*high).zip(digit(*low)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
            }
            [byte, tail @ ..] => {
                rest = tail;
                Some(*byte)
            }
        };
        if byte.is_none() || byte != wanted.next() {
            return false;
        }
    }
}

fn refused(reason: &'static str) -> Error {
    Error::tenant_not_found().with_source(reason)
}

#[cfg(test)]
mod tests {
    use http::{Request, Uri};
    use tenancy_core::TenantId;

    use super::*;

    fn resolve(prefix: &str, uri: &str) -> Result<Option<String>> {
        let parts = Request::get(uri.parse::<Uri>().expect(uri)).body(()).expect("request").into_parts().0;
        let found = PathResolver::new(prefix).expect("prefix").resolve(&parts)?;
        Ok(found.map(|found| found.hint().to_string()))
    }

    #[test]
    fn the_segment_behind_the_prefix() {
        let id = TenantId::new();
        for (uri, tenant) in [
            ("/t/acme", "acme"),
            ("/t/acme/", "acme"),
            ("/t/acme/projects?x=1", "acme"),
            ("http://host/t/acme/files/a%20b", "acme"),
            (&format!("/t/{id}/x"), &id.to_string()),
        ] {
            assert_eq!(resolve("/t", uri).expect(uri).as_deref(), Some(tenant), "{uri}");
        }
        assert_eq!(resolve("/api/v1/t", "/api/v1/t/acme/x").expect("long prefix").as_deref(), Some("acme"));
    }

    #[test]
    fn paths_that_name_no_tenant() {
        for uri in ["/", "/t", "/T/acme", "/tx/acme", "/x/t/acme", "/my%20files/acme", "/%zz/acme", "*"] {
            assert_eq!(resolve("/t", uri).expect(uri), None, "{uri}");
        }
        assert_eq!(resolve("/api/t", "/api/x/acme").expect("other"), None);
    }

    #[test]
    fn paths_that_are_refused() {
        let bad = [
            "/t/",
            "/t//acme",
            "//t/acme",
            "/t/../t/beta",
            "/t/acme/../beta/x",
            "/t/acme/%2e%2E/beta",
            "/./t/acme",
            "/t/.%2e/acme",
            "/t/acme/.",
            "/%74/acme",
            "/t/%61cme",
            "/t/acme%2fx",
            "/t/acme%00",
            "/t/ACME",
            "/t/admin",
            "/t/'or'1'='1",
            "/t/00000000-0000-0000-0000-000000000000",
        ];
        for uri in bad {
            assert_eq!(resolve("/t", uri).expect_err(uri).kind(), ErrorKind::TenantNotFound, "{uri}");
        }
        assert!(resolve("/t", &format!("/t/{}", "a".repeat(5000))).is_err());
    }

    #[test]
    fn prefixes_are_checked() {
        for bad in ["", "/", "t", "/t/", "//t", "/{tenant}", "/a b"] {
            assert_eq!(PathResolver::new(bad).expect_err(bad).kind(), ErrorKind::Misconfigured, "{bad}");
        }
    }
}
