//! One signed text: `payload.signature`, both in base64url. What is signed is the kind of the document and the payload's bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::names::{InstallationKey, Origin, PublicKey, fixed};
use crate::{Error, ErrorKind, Result};

/// The longest text that is looked at, in bytes.
pub const MAX_TEXT: usize = 4096;

/// What can be signed. The rules of each kind are in its own module; nobody else adds one.
pub trait Document: Serialize + DeserializeOwned + sealed::Rules {
    /// Signs it.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) if it would be longer than [`MAX_TEXT`].
    fn sign(&self, key: &InstallationKey) -> Result<String> {
        let payload = serde_json::to_vec(self).map_err(|source| refused().with_source(source))?;
        let signature = key.sign(&signing_input(Self::KIND, &payload));
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(payload), URL_SAFE_NO_PAD.encode(signature));
        if text.len() <= MAX_TEXT { Ok(text) } else { Err(Error::invalid("document", "would be too long")) }
    }
}

pub(super) mod sealed {
    use chrono::{DateTime, Utc};

    use super::Origin;

    /// What makes a document valid, besides its signature.
    pub trait Rules {
        /// Apart from every other kind, so that no signature serves for two.
        const KIND: &'static str;

        /// Who has signed it.
        fn issuer(&self) -> &Origin;

        /// Whether it says `audience` is to believe it, at `now`.
        fn holds(&self, audience: &Origin, now: DateTime<Utc>) -> bool;
    }
}

fn signing_input(kind: &str, payload: &[u8]) -> Vec<u8> {
    [b"tenancy federation v1 ", kind.as_bytes(), b"\n", payload].concat()
}

/// The one error of whatever is wrong with a document.
fn refused() -> Error {
    Error::new(ErrorKind::Unauthenticated, "the document is not signed as it must be, is for somebody else, or its time is over")
}

/// A document that somebody brought, of which nothing is believed yet but whose keys to try.
pub struct Unverified<D> {
    document: D,
    payload: Vec<u8>,
    signature: [u8; 64],
}

impl<D: Document> Unverified<D> {
    /// Reads it. Nothing is taken but the one spelling that [`Document::sign`] gives.
    ///
    /// # Errors
    /// [`Unauthenticated`](ErrorKind::Unauthenticated), in the same words whatever was wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let read = || -> Option<Self> {
            let (payload, signature) = Some(text).filter(|text| text.len() <= MAX_TEXT)?.split_once('.')?;
            let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
            let document: D = serde_json::from_slice(&payload).ok()?;
            let canonical = serde_json::to_vec(&document).ok()? == payload;
            Some(Self { document, payload, signature: fixed(signature)? }).filter(|_| canonical)
        };
        read().ok_or_else(refused)
    }

    /// Who it says has signed it: whose keys to ask for.
    pub fn issuer(&self) -> &Origin {
        self.document.issuer()
    }

    /// The document, if one of `keys` has signed it, and it holds for `audience` at `now`; and which key.
    ///
    /// # Errors
    /// [`Unauthenticated`](ErrorKind::Unauthenticated), in the same words whatever was wrong.
    ///
    /// # Security
    /// Upholds I34. The keys are those that were pinned for the [`issuer`](Self::issuer): none that the document brings.
    pub fn verify(self, keys: &[PublicKey], audience: &Origin, now: DateTime<Utc>) -> Result<(D, PublicKey)> {
        let input = signing_input(D::KIND, &self.payload);
        let signer = keys.iter().find(|key| key.has_signed(&input, &self.signature)).copied().ok_or_else(refused)?;
        if self.document.holds(audience, now) { Ok((self.document, signer)) } else { Err(refused()) }
    }
}

impl<D> fmt::Debug for Unverified<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").finish_non_exhaustive()
    }
}
