//! The sealed mode's key, and the tokens that are signed with it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use tenancy_core::{Error, TenantId};

/// How long a token may be used: the time from one message's making to the server's reading of it, and what two clocks may differ by.
const LIFETIME: Duration = Duration::from_secs(30);

/// The key of the sealed mode: 32 random bytes, which the application and the database share and the application's role can't read.
///
/// As text, 64 hexadecimal digits: `openssl rand -hex 32` makes one. Keep it where the database's password is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// The key of these bytes, which must be random.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What lets a transaction serve `tenant_id`, from now on for a short while: characters of `0-9a-f.-` only.
    pub(crate) fn token(&self, tenant_id: TenantId) -> String {
        let expiry = SystemTime::now() + LIFETIME;
        let expiry = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut token = format!("{tenant_id}.{expiry:010}");
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(token.as_bytes());
        token.push('.');
        for byte in mac.finalize().into_bytes() {
            token.push_str(&format!("{byte:02x}"));
        }
        token
    }

    /// What HMAC hashes before the message, on the inside and on the outside.
    pub(crate) fn pads(&self) -> (Vec<u8>, Vec<u8>) {
        let pad = |with: u8| (0..64).map(|i| self.0.get(i).copied().unwrap_or_default() ^ with).collect();
        (pad(0x36), pad(0x5c))
    }
}

impl FromStr for SealKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::invalid("seal key", "must have 64 hexadecimal digits: openssl rand -hex 32");
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16)?.try_into().ok()).collect::<Option<_>>().ok_or_else(bad)?;
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        bytes.try_into().ok().filter(|_| digits.len() == 64).map(Self).ok_or_else(bad)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_64_digits_and_never_shown() {
        let key: SealKey = "0123456789abcdefABCDEF00112233445566778899aabbccddeeff0011223344".parse().expect("a key");
        assert_eq!(key.0[..9], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xab]);
        assert_eq!(format!("{key:?}"), "SealKey(..)");
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<SealKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_safe_in_a_literal() {
        let token = SealKey::new([7; 32]).token(TenantId::new());
        assert_eq!(token.len(), 112);
        assert!(token.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'.'), "{token}");
    }
}
