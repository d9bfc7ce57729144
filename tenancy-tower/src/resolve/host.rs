//! The tenant in the host: `acme.example.com`.

use std::borrow::Cow;

use http::header::HOST;
use http::request::Parts;
use tenancy_core::{DomainName, Error, ErrorKind, Result, TenantHint, TenantSlug};

use super::{Identified, ResolveTenant};

/// Reads a tenant's slug from the one label before a base domain.
///
/// - The host is HTTP/2's `:authority` (or that of an absolute target), else the `Host` header. Two that differ, or two headers, are
///   refused. `X-Forwarded-Host` and `Forwarded` are never read.
/// - Case, one trailing dot and the port don't matter.
/// - The base domain itself, [reserved words](TenantSlug::RESERVED) before it (`www`, `api`), other domains and IP addresses name no
///   tenant.
/// - [`with_domains`](HostResolver::with_domains), other domains are tenants' own.
/// - Any other name below the base domain is a tenant's or is refused: `a.b.example.com`, `xn--….example.com`, `a_b.example.com`.
#[derive(Debug, Clone)]
pub struct HostResolver {
    base: Box<str>,
    domains: bool,
}

impl HostResolver {
    /// Tenants live directly below `base`, such as `example.com` (or `localhost`, for development).
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if `base` is not a host name in lower case without port or trailing dot.
    pub fn new(base: &str) -> Result<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        };
        // A name whose last label is a number would be an IPv4 address to some parsers.
        let numeric = base.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if base.len() > 200 || numeric || !base.split('.').all(label) {
            return Err(Error::new(
                ErrorKind::Misconfigured,
                format!("{base:?} is no base domain: give a host name in lower case, without port or trailing dot"),
            ));
        }
        Ok(Self { base: base.into(), domains: false })
    }

    /// A host outside of the base domain is a domain of a tenant's own. A name that can't be one names no tenant, as without this.
    ///
    /// # Security
    /// The catalog must have the domains that their tenants have proved, and no others.
    #[must_use]
    pub fn with_domains(mut self) -> Self {
        self.domains = true;
        self
    }

    /// The hint in `host`, which [`host`] has checked.
    fn hint(&self, host: &str) -> Result<Option<TenantHint>> {
        let Some(at) = host.len().checked_sub(self.base.len()).filter(|at| host[*at..].eq_ignore_ascii_case(&self.base)) else {
            return Ok(self.domain(host));
        };
        let label = match host[..at].strip_suffix('.') {
            Some(label) => label,
            None if at == 0 => return Ok(None),
            None => return Ok(self.domain(host)),
        };
        let label = if label.bytes().any(|b| b.is_ascii_uppercase()) { label.to_ascii_lowercase().into() } else { Cow::from(label) };
        match label.parse::<TenantSlug>() {
            Ok(slug) => Ok(Some(slug.into())),
            Err(_) if TenantSlug::RESERVED.binary_search(&&*label).is_ok() => Ok(None),
            Err(malformed) => Err(Error::tenant_not_found().with_source(malformed)),
        }
    }
}

impl HostResolver {
    fn domain(&self, host: &str) -> Option<TenantHint> {
        if self.domains { host.parse::<DomainName>().ok().map(TenantHint::Domain) } else { None }
    }
}

impl ResolveTenant for HostResolver {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        let mut headers = request.headers.get_all(HOST).iter();
        let header = headers.next().map(|value| host(value.as_bytes())).transpose()?;
        if headers.next().is_some() {
            return Err(refused("there is more than one Host header"));
        }
        let target = request.uri.authority().map(|authority| host(authority.as_str().as_bytes())).transpose()?;
        if let (Some(header), Some(target)) = (header, target)
            && !header.eq_ignore_ascii_case(target)
        {
            return Err(refused("the Host header and the request's authority differ"));
        }
        let Some(host) = target.or(header) else { return Ok(None) };
        Ok(self.hint(host)?.map(Identified::claimed))
    }
}

/// The host of an authority, without port and trailing dot; empty for an IPv6 address.
fn host(authority: &[u8]) -> Result<&str> {
    let text = str::from_utf8(authority).map_err(|_| refused("the host is not ASCII"))?;
    if let Some(literal) = text.strip_prefix('[') {
        // An address names no tenant; that it is one is checked so that nothing hides in it.
        let (address, port) = literal.split_once(']').ok_or_else(|| refused("the host has an unpaired bracket"))?;
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
        return if is_address && is_port { Ok("") } else { Err(refused("the host is no IPv6 address")) };
    }
    let name = match text.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return Err(refused("the port is no number")),
        None => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if name.len() > 253 || !(name.is_empty() || name.split('.').all(label)) {
        return Err(refused("the host is no host name"));
    }
    Ok(name)
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

fn refused(reason: &'static str) -> Error {
    Error::tenant_not_found().with_source(reason)
}

#[cfg(test)]
mod tests {
    use http::{Request, Uri};

    use super::*;

    fn resolve(uri: &str, hosts: &[&[u8]]) -> Result<Option<String>> {
        let mut request = Request::get(uri.parse::<Uri>().expect("uri"));
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let parts = request.body(()).expect("request").into_parts().0;
        let found = HostResolver::new("example.com").expect("base").resolve(&parts)?;
        Ok(found.map(|found| found.hint().to_string()))
    }

    fn by_header(host: &str) -> Result<Option<String>> {
        resolve("/", &[host.as_bytes()])
    }

    #[test]
    fn one_label_before_the_base_domain() {
        for same in ["acme.example.com", "ACME.Example.COM", "acme.example.com.", "acme.example.com:8080", "acme.example.com.:80"] {
            assert_eq!(by_header(same).expect(same).as_deref(), Some("acme"), "{same}");
        }
    }

    #[test]
    fn hosts_that_name_no_tenant() {
        let none = [
            "",
            "example.com",
            "example.com:443",
            "www.example.com",
            "API.example.com",
            "evilexample.com",
            "acme.example.com.evil.test",
            "acme.example.org",
            "example.co",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
        ];
        for host in none {
            assert_eq!(by_header(host).expect(host), None, "{host}");
        }
        assert_eq!(resolve("/", &[]).expect("no host"), None);
    }

    #[test]
    fn hosts_that_are_refused() {
        let bad = [
            "a.b.example.com",
            ".example.com",
            "acme..example.com",
            "acme.example.com..",
            "xn--acm-dma.example.com",
            "a_b.example.com",
            "-acme.example.com",
            "1acme.example.com",
            "ab.example.com",
            "acme.example.com:http",
            "acme.example.com:80:80",
            "acme.example.com:123456",
            "user@acme.example.com",
            "acme.example.com/x",
            "acme.example.com,beta.example.com",
            "acme%2eexample.com",
            "acme .example.com",
            "' or 1=1 --.example.com",
            "[::1",
            "[acme.example.com]",
            "[::1].example.com",
            "acmé.example.com",
            "00000000-0000-0000-0000-000000000000.example.com",
        ];
        for host in bad {
            assert_eq!(by_header(host).expect_err(host).kind(), ErrorKind::TenantNotFound, "{host}");
        }
        assert!(resolve("/", &[b"acme\xff.example.com"]).is_err());
        assert!(resolve("/", &[b"acme.example.com", b"acme.example.com"]).is_err());
    }

    #[test]
    fn other_domains_are_tenants_own_where_they_may_be() {
        let resolver = HostResolver::new("example.com").expect("base").with_domains();
        let hint = |host: &str| {
            let parts = Request::get("/").header(HOST, host).body(()).expect("request").into_parts().0;
            resolver.resolve(&parts).map(|found| found.map(|found| found.hint().clone()))
        };
        for same in ["shop.acme.org", "SHOP.Acme.ORG.", "shop.acme.org:8443"] {
            assert_eq!(hint(same).expect(same), Some(TenantHint::Domain("shop.acme.org".parse().expect("a name"))), "{same}");
        }
        assert!(matches!(hint("evilexample.com").expect("other"), Some(TenantHint::Domain(_))));
        assert!(matches!(hint("acme.example.com").expect("below"), Some(TenantHint::Slug(_))));
        for none in ["example.com", "www.example.com", "127.0.0.1", "[::1]", "localhost", "a_b.acme.org", "acme.local", ""] {
            assert_eq!(hint(none).expect(none), None, "{none}");
        }
        assert!(hint("a.b.example.com").is_err(), "nothing below the base domain is anybody's own");
    }

    #[test]
    fn the_authority_and_the_header_must_be_one_host() {
        let target = "http://acme.example.com/";
        assert_eq!(resolve(target, &[]).expect("authority").as_deref(), Some("acme"));
        assert_eq!(resolve(target, &[b"ACME.example.com:80"]).expect("same").as_deref(), Some("acme"));
        assert!(resolve(target, &[b"beta.example.com"]).is_err());
        assert!(resolve(target, &[b"example.com"]).is_err());
    }

    #[test]
    fn base_domains_are_checked() {
        for good in ["example.com", "localhost", "tenants.eu-1.example.com"] {
            assert!(HostResolver::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", ".", "Example.com", "example.com.", ".example.com", "*.example.com", "example.com:80", "127.0.0.1", "[::1]", "exa mple"]
        {
            assert_eq!(HostResolver::new(bad).expect_err(bad).kind(), ErrorKind::Misconfigured, "{bad}");
        }
    }
}
