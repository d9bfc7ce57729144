//! The tenant in a header that a trusted proxy or service sets.

use std::fmt;
use std::net::IpAddr;

use http::HeaderName;
use http::request::Parts;
use ipnet::IpNet;
use tenancy_core::{Error, ErrorKind, Result};

use super::{Identified, ResolveTenant};

/// Reads a tenant's slug or UUID from a header, of trusted peers alone.
///
/// - From any other peer, and where the peer isn't known, a request that has the header is refused (403): it isn't ignored.
/// - A header that comes twice or is malformed is refused (400).
///
/// # Security
/// Whoever sends from a trusted address can name any tenant. It proves nobody: the principal is a visitor.
pub struct HeaderResolver {
    name: HeaderName,
    trusted: Vec<IpNet>,
    peer: Box<PeerOf>,
}

/// Tells where a request's connection comes from.
type PeerOf = dyn Fn(&Parts) -> Option<IpAddr> + Send + Sync;

impl HeaderResolver {
    /// Reads the header `name` of peers in the networks `trusted`, such as `10.0.0.0/8` or `::1/128`.
    ///
    /// `peer` tells where the connection comes from. With axum's `into_make_service_with_connect_info::<SocketAddr>()` that is
    ///
    /// ```
    /// # use axum::extract::ConnectInfo;
    /// # use http::{HeaderName, request::Parts};
    /// # use std::net::SocketAddr;
    /// # use tenancy_tower::HeaderResolver;
    /// let name = HeaderName::from_static("x-tenant");
    /// let resolver = HeaderResolver::new(name, &["10.0.0.0/8"], |request: &Parts| {
    ///     request.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
    /// })?;
    /// # Ok::<_, tenancy_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if `trusted` is empty, has something that is no network, or one of all addresses.
    pub fn new(name: HeaderName, trusted: &[&str], peer: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static) -> Result<Self> {
        let networks = trusted.iter().map(|text| match text.parse::<IpNet>() {
            Ok(network) if network.prefix_len() > 0 => Ok(network),
            _ => Err(Error::new(ErrorKind::Misconfigured, format!("{text:?} is no network to trust: give one such as \"10.0.0.0/8\""))),
        });
        let trusted = networks.collect::<Result<Vec<_>>>()?;
        if trusted.is_empty() {
            return Err(Error::new(ErrorKind::Misconfigured, "no peer is trusted to send the header: name its network"));
        }
        Ok(Self { name, trusted, peer: Box::new(peer) })
    }

    fn trusts(&self, request: &Parts) -> bool {
        // A dual-stack listener shows IPv4 peers as IPv6 addresses.
        let peer = (self.peer)(request).map(|address| address.to_canonical());
        peer.is_some_and(|peer| self.trusted.iter().any(|network| network.contains(&peer)))
    }
}

impl ResolveTenant for HeaderResolver {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        let mut values = request.headers.get_all(&self.name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if !self.trusts(request) {
            return Err(Error::new(ErrorKind::Forbidden, format!("the header {} is not accepted from this address", self.name)));
        }
        if values.next().is_some() {
            return Err(Error::invalid(self.name.to_string(), "must come once"));
        }
        let hint = value.to_str().ok().and_then(|text| text.parse().ok());
        let hint = hint.ok_or_else(|| Error::invalid(self.name.to_string(), "must be a tenant's UUID or slug"))?;
        Ok(Some(Identified::claimed(hint)))
    }
}

impl fmt::Debug for HeaderResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderResolver").field("name", &self.name).field("trusted", &self.trusted).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn resolver(trusted: &[&str]) -> Result<HeaderResolver> {
        HeaderResolver::new(HeaderName::from_static("x-tenant"), trusted, |request| request.extensions.get::<IpAddr>().copied())
    }

    fn resolve(peer: Option<&str>, values: &[&[u8]]) -> Result<Option<Identified>> {
        let mut request = Request::get("/");
        for value in values {
            request = request.header("x-tenant", *value);
        }
        if let Some(peer) = peer {
            request = request.extension(peer.parse::<IpAddr>().expect("address"));
        }
        resolver(&["10.1.0.0/16", "fd00::/8"])?.resolve(&request.body(()).expect("request").into_parts().0)
    }

    #[test]
    fn trusted_peers_are_read() {
        for peer in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::7"] {
            let found = resolve(Some(peer), &[b"acme"]).expect(peer).expect("found");
            assert_eq!((found.hint().to_string().as_str(), found.is_proven()), ("acme", false), "{peer}");
        }
        assert!(resolve(Some("10.1.2.3"), &[]).expect("no header").is_none());
    }

    #[test]
    fn the_header_of_others_is_refused_and_not_ignored() {
        for peer in [Some("10.2.0.1"), Some("::1"), Some("2001:db8::1"), Some("::ffff:10.2.0.1"), None] {
            assert_eq!(resolve(peer, &[b"acme"]).expect_err("untrusted").kind(), ErrorKind::Forbidden, "{peer:?}");
            assert!(resolve(peer, &[]).expect("no header").is_none());
        }
    }

    #[test]
    fn duplicates_and_malformed_values_are_refused() {
        let bad: [&[&[u8]]; 7] =
            [&[b"acme", b"acme"], &[b"acme,beta"], &[b"ACME"], &[b""], &[b"acme\xff"], &[b"' or 1=1 --"], &[&[b'a'; 5000]]];
        for values in bad {
            let error = resolve(Some("10.1.2.3"), values).expect_err("malformed");
            assert_eq!((error.kind(), error.field()), (ErrorKind::Invalid, Some("x-tenant")));
        }
    }

    #[test]
    fn networks_are_checked() {
        for bad in [&[][..], &["10.0.0.1"], &["0.0.0.0/0"], &["::/0"], &["10.0.0.0/33"], &["proxy.internal"]] {
            assert_eq!(resolver(bad).expect_err("no network").kind(), ErrorKind::Misconfigured, "{bad:?}");
        }
    }
}
