//! The installations that this one knows, and the keys that are pinned for them.

use chrono::{DateTime, Utc};
use hyper::Method;
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, Row};
use tenancy_core::federation::{Origin, PublicKey, Rotation, Unverified};
use tenancy_core::{AuditEvent, Error, ErrorKind, Result};
use uuid::Uuid;

use super::{ANNOUNCEMENT, Announcement, Federation};
use crate::error::from_sqlx;
use crate::tx::{SystemTx, Tx};

const COLUMNS: &str = "id, origin, key, next_key, created_at, rotated_at";

/// Another installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Peer {
    /// Which.
    pub id: Uuid,
    /// Where it is.
    pub origin: Origin,
    /// The key that is pinned for it.
    pub key: PublicKey,
    /// The key that takes its place when it is first used.
    pub next_key: Option<PublicKey>,
    /// When it was added.
    pub created_at: DateTime<Utc>,
    /// When its key was last replaced.
    pub rotated_at: Option<DateTime<Utc>>,
}

fn key(bytes: &[u8]) -> sqlx::Result<PublicKey> {
    let bytes = bytes.try_into().map_err(|source| sqlx::Error::Decode(Box::new(source)))?;
    PublicKey::from_bytes(bytes).map_err(decode)
}

fn decode(error: Error) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// What it takes to believe a peer.
pub(super) struct Pinned {
    pub(super) id: Uuid,
    pub(super) keys: Vec<PublicKey>,
}

impl FromRow<'_, PgRow> for Pinned {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let next: Option<&[u8]> = row.try_get("next_key")?;
        let keys = [Some(row.try_get("key")?), next].into_iter().flatten().map(key).collect::<sqlx::Result<_>>()?;
        Ok(Self { id: row.try_get("id")?, keys })
    }
}

/// The keys of the peer at `origin`, if there is one.
pub(super) async fn pinned<S: Send + std::fmt::Debug>(tx: &mut Tx<S>, origin: &Origin) -> Result<Option<Pinned>> {
    let query = sqlx::query_as("select id, key, next_key from tenancy.federation_peers where origin = $1 and removed_at is null");
    query.bind(origin.as_str()).fetch_optional(tx).await.map_err(from_sqlx)
}

impl FromRow<'_, PgRow> for Peer {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            origin: row.try_get::<&str, _>("origin")?.parse().map_err(decode)?,
            key: key(row.try_get("key")?)?,
            next_key: row.try_get::<Option<&[u8]>, _>("next_key")?.map(key).transpose()?,
            created_at: row.try_get("created_at")?,
            rotated_at: row.try_get("rotated_at")?,
        })
    }
}

impl SystemTx {
    /// At most `limit` peers with ids before `before`, the newest first.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federation_peers(&mut self, before: Uuid, limit: i64) -> Result<Vec<Peer>> {
        let sql = format!("select {COLUMNS} from tenancy.federation_peers where removed_at is null and id < $1 order by id desc limit $2");
        sqlx::query_as(AssertSqlSafe(sql)).bind(before).bind(limit).fetch_all(self).await.map_err(from_sqlx)
    }

    /// A peer.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn federation_peer(&mut self, id: Uuid) -> Result<Peer> {
        let sql = format!("select {COLUMNS} from tenancy.federation_peers where id = $1 and removed_at is null");
        sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_one(self).await.map_err(from_sqlx)
    }

    /// Adds the installation at `origin`, whose key, as its operators told it by another way, is `key`.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if it is there already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn add_federation_peer(&mut self, origin: &Origin, key: &PublicKey) -> Result<Peer> {
        let sql = format!("insert into tenancy.federation_peers (id, origin, key) values ($1, $2, $3) returning {COLUMNS}");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(Uuid::now_v7()).bind(origin.as_str()).bind(&key.as_bytes()[..]);
        let peer = query.fetch_one(&mut *self).await.map_err(|error| {
            let error = from_sqlx(error);
            match error.kind() {
                ErrorKind::Conflict => Error::new(ErrorKind::Conflict, "this installation is a peer already").with_source(error),
                _ => error,
            }
        })?;
        self.audit_peer("federation.peer", &peer).await?;
        Ok(peer)
    }

    /// Pins the key that a peer will sign with: it takes the place of the one before when it is first used. See
    /// [`Federation::next_key_of`].
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Conflict`](ErrorKind::Conflict) if it is the peer's key already.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn pin_federation_key(&mut self, id: Uuid, next: &PublicKey) -> Result<Peer> {
        let found = self.federation_peer(id).await?;
        if found.key == *next {
            return Err(Error::new(ErrorKind::Conflict, "this is the peer's key already"));
        }
        let sql = format!("update tenancy.federation_peers set next_key = $2 where id = $1 and removed_at is null returning {COLUMNS}");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(&next.as_bytes()[..]);
        let peer = query.fetch_one(&mut *self).await.map_err(from_sqlx)?;
        self.audit_peer("federation.pin", &peer).await?;
        Ok(peer)
    }

    /// Removes a peer: all that is shared with it, and by it, ends for good, also if it is added again.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound). Removed again, it stays removed.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn remove_federation_peer(&mut self, id: Uuid) -> Result<()> {
        let query = sqlx::query_scalar("select tenancy.federation_peer_remove($1)").bind(id);
        if !query.fetch_one(&mut *self).await.map_err(from_sqlx)? {
            return Err(Error::not_found());
        }
        self.audit(&AuditEvent::new(self.actor().clone(), "federation.remove", id.to_string())).await
    }

    async fn audit_peer(&mut self, action: &str, peer: &Peer) -> Result<()> {
        let detail = json!({ "origin": peer.origin, "key": peer.key, "next_key": peer.next_key });
        self.audit(&AuditEvent::new(self.actor().clone(), action, peer.id.to_string()).with_detail(detail)).await
    }
}

impl Federation {
    /// The key that a peer announces as its next one, signed with the key that is pinned for it.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if it announces none that the pinned key has signed; [`Unavailable`](ErrorKind::Unavailable).
    ///
    /// # Cancel safety
    /// Safe.
    ///
    /// # Security
    /// Upholds I34: what the announcement says without a signature makes no difference.
    pub async fn next_key_of(&self, peer: &Peer, now: DateTime<Utc>) -> Result<PublicKey> {
        let none = || Error::new(ErrorKind::Conflict, "the installation announces no next key that its pinned key has signed");
        let (status, body) = self.send(&peer.origin, Method::GET, ANNOUNCEMENT, Vec::new()).await?;
        let announced: Option<Announcement> = serde_json::from_slice(&body).ok().filter(|_| status == 200);
        let rotation = announced.and_then(|announced| announced.rotation).ok_or_else(none)?;
        let rotation = Unverified::<Rotation>::parse(&rotation).map_err(|_| none())?;
        let (rotation, _) = rotation.verify(&[peer.key], &self.origin, now).map_err(|_| none())?;
        if rotation.issuer == peer.origin { Ok(rotation.next) } else { Err(none()) }
    }
}
