//! Shares with tenants of other installations: each has its own database and server, and its own key.
//!
//! - Operators of both sides add the other as a [`Peer`], with the key that they were told: it is pinned.
//! - An admin [offers](crate::TenantTx::offer_federated) a resource and hands the signed document over; an admin of the target
//!   [accepts](Federation::accept) it.
//! - The target's installation then [asks](Federation::ask) the owner's, with a proof for each request; the owner's [opens](Federation::open) the
//!   share for it: a READ ONLY transaction that sees one resource, as of each statement.
//!
//! What is signed, and how it is verified: [`tenancy_core::federation`]. `docs/federation.md` has the whole story.

use std::fmt;

use chrono::{DateTime, Utc};
use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tenancy_core::federation::{Document as _, InstallationKey, Nonce, Origin, Proof, PublicKey, Rotation};
use tenancy_core::{Error, ErrorKind, Result};
use uuid::Uuid;

use crate::db::TenantDb;
use crate::webhook::client::{Client, Failure, Message};

mod incoming;
mod outgoing;
mod peers;

pub use incoming::FederatedGrant;
pub use outgoing::{FederatedOpening, FederatedShare, NewFederatedShare, PeerRequest};
pub use peers::Peer;

/// Where an installation announces its keys.
pub const ANNOUNCEMENT: &str = "/.well-known/tenancy-federation";
/// The header of a request that has its proof.
pub const PROOF: &str = "tenancy-proof";
/// How much of another installation's answer is read.
const MAX_ANSWER: usize = 1024 * 1024;

/// The path at the owner's installation for `act` on a share: `accept`, `decline`, `end`, or what is to be read.
pub fn path(share: Uuid, act: &str) -> String {
    format!("/federation/v1/shares/{share}/{act}")
}

/// What an installation tells everybody about its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Announcement {
    /// Where it is.
    pub origin: Origin,
    /// What it signs with.
    pub key: PublicKey,
    /// What it will sign with.
    pub next_key: Option<PublicKey>,
    /// That it will, signed with `key`: a [`Rotation`].
    pub rotation: Option<String>,
}

/// This installation, as others know it.
#[derive(Clone)]
pub struct Federation {
    db: TenantDb,
    origin: Origin,
    key: InstallationKey,
    next: Option<InstallationKey>,
    client: std::sync::Arc<Client>,
}

impl fmt::Debug for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Federation").field("origin", &self.origin).field("key", &self.key.public()).finish_non_exhaustive()
    }
}

impl Federation {
    /// The installation at `origin`, which signs with `key`. With `loopback`, for development, it also asks installations on this machine.
    ///
    /// # Errors
    /// [`Misconfigured`](ErrorKind::Misconfigured) if TLS can't be set up.
    pub fn new(db: &TenantDb, origin: Origin, key: InstallationKey, loopback: bool) -> Result<Self> {
        Ok(Self { db: db.clone(), origin, key, next: None, client: Client::new(None, loopback)?.into() })
    }

    /// Announces the key that comes next, so that others pin it before it is used.
    #[must_use]
    pub fn with_next_key(self, next: InstallationKey) -> Self {
        Self { next: Some(next), ..self }
    }

    /// Where it is.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Whether it asks an installation at `origin`: one on this machine only where that was allowed.
    pub fn permits(&self, origin: &Origin) -> bool {
        self.client.loopback || !origin.is_loopback()
    }

    /// What it tells everybody at [`ANNOUNCEMENT`].
    ///
    /// # Errors
    /// None in practice.
    pub fn announcement(&self, now: DateTime<Utc>) -> Result<Announcement> {
        let next_key = self.next.as_ref().map(InstallationKey::public);
        let rotation = next_key.map(|next| Rotation { issuer: self.origin.clone(), next, issued_at: now }.sign(&self.key)).transpose()?;
        Ok(Announcement { origin: self.origin.clone(), key: self.key.public(), next_key, rotation })
    }

    /// Asks another installation about a share, with a proof.
    async fn call(&self, peer: &Origin, (method, path): (Method, &str), capability: Nonce, now: DateTime<Utc>) -> Result<(u16, Bytes)> {
        let proof = Proof {
            issuer: self.origin.clone(),
            audience: peer.clone(),
            method: method.to_string(),
            path: path.to_owned(),
            capability,
            issued_at: now,
            nonce: Nonce::new(rand::random()),
        };
        self.send(peer, method, path, vec![(PROOF, proof.sign(&self.key)?)]).await
    }

    async fn send(&self, peer: &Origin, method: Method, path: &str, mut headers: Vec<(&'static str, String)>) -> Result<(u16, Bytes)> {
        headers.push(("user-agent", concat!("tenancy-federation/", env!("CARGO_PKG_VERSION")).to_owned()));
        headers.push(("accept", "application/json".to_owned()));
        let message = Message { method, headers, body: Vec::new(), most: MAX_ANSWER };
        let away = |why: String| {
            Error::new(ErrorKind::Unavailable, "the other installation can't be reached now: try again later").with_source(why)
        };
        match self.client.send(&format!("{peer}{path}"), message).await {
            Ok((status, Some(body))) => Ok((status, body)),
            Ok((status, None)) => Err(away(format!("its answer, of status {status}, is too long"))),
            Err(Failure::Away(why) | Failure::Forbidden(why)) => Err(away(why.to_owned())),
        }
    }
}

/// What another installation answered that was neither done nor refused.
fn unexpected(status: u16) -> Error {
    let what = "the other installation can't answer now: try again later";
    Error::new(ErrorKind::Unavailable, what).with_source(format!("it answered {status}"))
}
