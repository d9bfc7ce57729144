//! Where a webhook may go: public addresses, and nothing inside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tenancy_core::{Error, Result};
use url::{Host, Url};

/// The longest URL, in bytes.
const MAX_URL: usize = 2000;

/// Checks the URL of an endpoint: https, a host name, nothing that hides in it. With `loopback`, for development, also this machine by http.
///
/// That a name is well-formed says nothing about where it leads: that is asked when a connection is made.
///
/// # Errors
/// [`Invalid`](tenancy_core::ErrorKind::Invalid) at `url`.
pub fn check_url(text: &str, loopback: bool) -> Result<Url> {
    let refuse = |why: &'static str| Error::invalid("url", why);
    if text.len() > MAX_URL || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(refuse("must be a URL of at most 2000 bytes"));
    }
    let url = Url::parse(text).map_err(|_| refuse("must be a URL such as https://example.com/hooks"))?;
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(refuse("must have no user, password or fragment"));
    }
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => return Err(refuse("must name a host")),
    };
    if loopback && here && matches!(url.scheme(), "http" | "https") {
        return Ok(url);
    }
    if url.scheme() != "https" {
        return Err(refuse("must begin with https://"));
    }
    match url.host() {
        Some(Host::Domain(name)) if name.trim_end_matches('.').contains('.') => Ok(url),
        _ => Err(refuse("must name a public host, and not an address")),
    }
}

/// Whether a connection to `ip` may be made.
pub(super) fn is_permitted(ip: IpAddr, loopback: bool) -> bool {
    (loopback && ip.is_loopback()) || is_public(ip)
}

/// Whether `ip` is one of the public internet. What is set aside for anything else is not (the registries of special-purpose addresses).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)       // this network, private, loopback; multicast, reserved, broadcast
            | (100, 64..=127, _)             // carriers'
            | (169, 254, _)                  // link-local: clouds' metadata
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

/// Only 2000::/3 is given out; mapped, translated, unique local and link-local addresses are elsewhere.
fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    let set_aside = (a == 0x2001 && (b < 0x200 || b == 0xdb8)) // Teredo, ORCHID; documentation
        || a == 0x2002 // 6to4: an IPv4 address is in it
        || (a == 0x3fff && b < 0x1000);
    (0x2000..0x4000).contains(&a) && !set_aside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_permitted() {
        for ip in [
            "1.1.1.1",
            "93.184.215.14",
            "172.15.255.255",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "192.167.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_permitted(ip.parse().expect(ip), false), "{ip}");
        }
        let inside = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.168.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for ip in inside {
            assert!(!is_permitted(ip.parse().expect(ip), false), "{ip}");
        }
        // For development this machine, and nothing else.
        let here = |ip: &&str| is_permitted(ip.parse().expect("an address"), true);
        assert_eq!(inside.into_iter().filter(|ip| here(ip)).collect::<Vec<_>>(), ["127.0.0.1", "127.255.255.255", "::1"]);
    }

    #[test]
    fn urls_are_https_to_a_name() {
        for good in ["https://example.com", "https://hooks.example.com:8443/a?b=c", "HTTPS://Example.com/"] {
            assert!(check_url(good, false).is_ok(), "{good}");
        }
        let long = format!("https://example.com/{}", "x".repeat(2000));
        for bad in [
            "",
            "example.com",
            "http://example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "https://",
            "https://localhost/",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest",
            "https://user@example.com",
            "https://a:b@example.com",
            "https://example.com/#x",
            "https://exa mple.com",
            "https://example.com/\n",
            "https://intranet/",
            "javascript:alert(1)",
            &long,
        ] {
            assert_eq!(check_url(bad, false).expect_err(bad).field(), Some("url"), "{bad}");
        }
        for here in ["http://127.0.0.1:8080/x", "http://localhost/", "http://[::1]:1/", "https://localhost/"] {
            assert!(check_url(here, true).is_ok() && check_url(here, false).is_err(), "{here}");
        }
        for away in ["http://example.com", "http://10.0.0.1/", "https://10.0.0.1/", "http://[::ffff:127.0.0.1]/"] {
            assert!(check_url(away, true).is_err(), "{away}");
        }
    }
}
