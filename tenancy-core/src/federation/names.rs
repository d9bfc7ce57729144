//! Who an installation is: where it is reached, the key that it signs with, and the one that others know it by.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest origin, in bytes.
const MAX_ORIGIN: usize = 260;

/// Where an installation is reached, and so what it is called: `https://app.example.com`, in one spelling.
///
/// For development also `http`, on `localhost`, `127.0.0.1` or `[::1]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(Box<str>);

impl Origin {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is on the machine that asks.
    pub fn is_loopback(&self) -> bool {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        is_here(rest.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(rest, |(host, _)| host))
    }
}

fn is_here(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

impl FromStr for Origin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        let default = if scheme == "https" { "443" } else { "80" };
        let port_is_fine =
            port.is_none_or(|port| port != default && port.parse::<u16>().is_ok_and(|number| number > 0 && number.to_string() == port));
        let label = |label: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&label.len()) && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
        };
        let host_is_fine = is_here(host) || (scheme == "https" && host.contains('.') && host.split('.').all(label));
        if text.len() <= MAX_ORIGIN && matches!(scheme, "https" | "http") && port_is_fine && host_is_fine {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid("origin", "must be such as https://app.example.com, in lower case, without a path"))
        }
    }
}

impl TryFrom<String> for Origin {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0.into()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an installation signs with: Ed25519. `Debug` hides it.
#[derive(Clone)]
pub struct InstallationKey(SigningKey);

impl InstallationKey {
    /// The key of these 32 secret bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&secret))
    }

    /// What others verify with.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl fmt::Debug for InstallationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstallationKey")
    }
}

/// What an installation is known by: an Ed25519 public key, as text 43 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) at `key` unless they are a point of the curve that can be a key.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        match VerifyingKey::from_bytes(bytes) {
            Ok(key) if !key.is_weak() => Ok(Self(key)),
            _ => Err(no_key()),
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(super) fn has_signed(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok()
    }
}

fn no_key() -> Error {
    Error::invalid("key", "must be an Ed25519 public key, as 43 characters of base64url")
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::from_bytes(&fixed(text).ok_or_else(no_key)?)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// 128 random bits that are used once, as text 22 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// These random bits.
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    /// The bits.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        fixed(&text).map(Self).ok_or_else(|| Error::invalid("nonce", "must be 22 characters of base64url"))
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        URL_SAFE_NO_PAD.encode(nonce.0)
    }
}

/// That of a capability is a secret.
impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce")
    }
}

/// So many bytes of base64url, in their one spelling.
pub(super) fn fixed<const N: usize>(text: &str) -> Option<[u8; N]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_installation_has_one_name() {
        for fine in
            ["https://app.example.com", "https://app.example.com:8443", "http://127.0.0.1:8080", "http://localhost", "https://[::1]:1"]
        {
            let origin: Origin = fine.parse().expect(fine);
            assert_eq!((origin.as_str(), origin.is_loopback()), (fine, !fine.contains("example")));
        }
        for bad in [
            "",
            "https://",
            "app.example.com",
            "https://App.example.com",
            "https://app.example.com/",
            "https://app.example.com:443",
            "http://localhost:80",
            "https://app.example.com:08",
            "https://app.example.com:0",
            "https://app.example.com:65536",
            "https://app.example.com:",
            "https://app.example.com?x",
            "https://user@app.example.com",
            "https://app..example.com",
            "https://app.example.com.",
            "https://-app.example.com",
            "https://inside",
            "http://app.example.com",
            "ftp://app.example.com",
            "https://app.example.com:8443:1",
            "https://äpp.example.com",
            &format!("https://{}.com", "a.".repeat(200)),
        ] {
            assert_eq!(bad.parse::<Origin>().expect_err(bad).field(), Some("origin"), "{bad}");
        }
    }

    #[test]
    fn keys_have_one_spelling_and_secrets_are_hidden() {
        let key = InstallationKey::new([7; 32]);
        let text = key.public().to_string();
        assert_eq!((text.len(), text.parse::<PublicKey>().expect("ours")), (43, key.public()));
        // The last character has two bits that no byte has.
        let last = text.as_bytes()[42] as char;
        let other = char::from(last as u8 + 1);
        for bad in ["", &text[1..], &format!("{text}="), &format!("{}{other}", &text[..42]), &URL_SAFE_NO_PAD.encode([0; 32])] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        assert_eq!((format!("{key:?}"), format!("{:?}", Nonce::new([1; 16]))), ("InstallationKey".to_owned(), "Nonce".to_owned()));
    }
}
