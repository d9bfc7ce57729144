//! Secrets that are shown once: the database keeps no more of them than their SHA-256.

use std::fmt;

use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};
use tenancy_core::{Error, ErrorKind, Result};

/// A bearer token of 256 random bits, with a prefix that says what it is for. `Debug` hides it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// What operators' tokens begin with.
    pub const OPERATOR: &'static str = "tno_";
    /// What the tokens of visits begin with.
    pub const IMPERSONATION: &'static str = "tni_";

    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let mut bytes = [0; 32];
        OsRng.try_fill_bytes(&mut bytes).map_err(|source| {
            Error::new(ErrorKind::Unavailable, "the system has no random numbers: try again later").with_source(source)
        })?;
        Ok(Self(bytes.iter().fold(prefix.to_owned(), |text, byte| format!("{text}{byte:02x}"))))
    }

    /// The token itself, for its holder's eyes.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        digest(&self.0)
    }
}

/// What the database keeps of a token.
pub(crate) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_hidden_and_never_the_same() {
        let (one, other) = (Token::new(Token::OPERATOR).expect("random"), Token::new(Token::OPERATOR).expect("random"));
        assert!(one.expose().starts_with("tno_") && one.expose().len() == 68);
        assert!(one.expose() != other.expose() && one.digest() != other.digest() && one.digest() == digest(one.expose()));
        assert!(!format!("{one:?}").contains(&one.expose()[4..]));
    }
}
