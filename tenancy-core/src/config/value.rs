//! Values that JSON has no type for.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A time span that people write: `250ms`, `30s`, `15m`, `24h`, `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period(Duration);

/// Milliseconds per unit, the largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl From<Duration> for Period {
    /// To the millisecond.
    fn from(duration: Duration) -> Self {
        Self(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Deref for Period {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let millis = UNITS.iter().find(|(name, _)| *name == unit).and_then(|(_, each)| number.parse::<u64>().ok()?.checked_mul(*each));
        millis
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| Error::invalid("period", "must be a number with ms, s, m, h or d, such as 15m"))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, each) = UNITS.into_iter().find(|(_, each)| millis >= *each && millis.is_multiple_of(*each)).unwrap_or(("s", 1000));
        write!(f, "{}{unit}", millis / each)
    }
}

impl TryFrom<String> for Period {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e: Error| e.message().to_owned())
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

/// An address that is safe to put behind a link: `https://` with a host name, or `mailto:` with one address.
///
/// - Visible ASCII, at most [`WebAddress::MAX_LEN`] bytes, without quotes, angle brackets and the like.
/// - No user name in it, which would make `https://bank.example@evil.example` look like another host.
/// - No other scheme: `javascript:` runs in the page that shows the link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebAddress(Box<str>);

impl WebAddress {
    /// The longest one, in bytes.
    pub const MAX_LEN: usize = 2000;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WebAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\'' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}');
        let fits = text.len() <= Self::MAX_LEN && text.bytes().all(plain);
        let valid = match (text.strip_prefix("https://"), text.strip_prefix("mailto:")) {
            (Some(rest), _) => is_authority(rest.split(['/', '?', '#']).next().unwrap_or_default()),
            // A query would add receivers and a text of its own.
            (None, Some(rest)) => !rest.contains(['?', '%', '&', ',', ';']) && rest.parse::<crate::Email>().is_ok(),
            (None, None) => false,
        };
        if fits && valid {
            return Ok(Self(text.into()));
        }
        Err(Error::invalid("url", "must be https:// with a host name and without a user name, or mailto: with one address"))
    }
}

/// A host name (or IPv4 address), perhaps with a port.
fn is_authority(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let port = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0));
    host.len() <= 253 && host.split('.').all(label) && port
}

impl fmt::Display for WebAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for WebAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e: Error| e.message().to_owned())
    }
}

impl From<WebAddress> for String {
    fn from(address: WebAddress) -> Self {
        address.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_and_written_in_their_largest_unit() {
        for (text, millis, back) in [
            ("15m", 900_000, "15m"),
            ("90s", 90_000, "90s"),
            ("3600s", 3_600_000, "1h"),
            ("24h", 86_400_000, "1d"),
            ("250ms", 250, "250ms"),
            ("0s", 0, "0s"),
        ] {
            let period: Period = text.parse().expect(text);
            assert_eq!((period.as_millis(), period.to_string().as_str()), (millis, back), "{text}");
        }
        for bad in ["", "15", "m", "-1s", "1.5h", "1 h", "1w", "99999999999999999999s", "300000000000d", "１s"] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_goes_to_https_or_mailto_and_nowhere_else() {
        for good in ["https://example.com", "https://help.example.com:8443/a?b=c#d", "https://localhost/", "mailto:help@example.com"] {
            assert_eq!(good.parse::<WebAddress>().expect(good).as_str(), good);
        }
        for bad in [
            "",
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            " javascript:alert(1)",
            "java\nscript:alert(1)",
            "data:text/html,<script>",
            "http://example.com",
            "HTTPS://example.com",
            "//example.com",
            "https://",
            "https:///path",
            "https://bank.example@evil.example",
            "https://user:password@example.com",
            "https://exa mple.com",
            "https://example.com/\r\nset-cookie: x",
            "https://example.com/\"onclick=",
            "https://example.com:99999",
            "https://-a.com",
            "https://bücher.example",
            "mailto:",
            "mailto:nobody",
            "mailto:a@b.example?bcc=c@d.example",
            "mailto:a@b.example,c@d.example",
            "vbscript:x",
            "file:///etc/passwd",
        ] {
            assert!(bad.parse::<WebAddress>().is_err(), "{bad}");
        }
        assert!(format!("https://example.com/{}", "x".repeat(2000)).parse::<WebAddress>().is_err());
    }
}
