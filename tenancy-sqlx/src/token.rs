//! Secrets that prove something by being known.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};
use tenancy_core::{Error, ErrorKind, Result};

/// 256 random bits as text: 43 characters of base64url. Only its SHA-256 is stored, so that it can be had once, where it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<str>);

impl Token {
    const LEN: usize = 43;

    /// A new one.
    pub(crate) fn new() -> Result<Self> {
        let mut bytes = [0; 32];
        let none = |source| Error::new(ErrorKind::Unavailable, "the system has no random numbers").with_source(source);
        rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(none)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes).into()))
    }

    /// A token that somebody presents, if it can be one.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (text.len() == Self::LEN && text.bytes().all(plain)).then(|| Self(text.into()))
    }

    /// The text, for whoever it is for.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it. Of the text and not of the bytes: one that differs in bits that decoding drops is another token.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_random_and_is_not_printed() {
        let (one, other) = (Token::new().expect("random"), Token::new().expect("random"));
        assert!(one != other && one.sha256() != other.sha256() && format!("{one:?}") == "Token");
        assert_eq!(Token::parse(one.expose()), Some(one.clone()));
        let with = |c: &str| format!("{}{c}", &one.expose()[1..]);
        for bad in ["", &one.expose()[1..], &with("'"), &with("="), &with(" "), &format!("{}x", one.expose())] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
