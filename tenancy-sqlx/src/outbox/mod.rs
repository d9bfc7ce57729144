//! Messages, written in the transaction that causes them, and delivered after it.

use sqlx::types::Json;
use tenancy_core::outbox::Message;
use tenancy_core::{Result, TenantId};

use crate::error::from_sqlx;
use crate::tx::{SystemTx, TenantTx};

mod hint;
mod outcome;
mod queue;
mod worker;

pub use queue::{MessageState, Undelivered};
pub use worker::{Worker, WorkerOptions};

impl TenantTx {
    /// Posts `message` on behalf of this tenant, as part of this transaction. Returns whether it is new: one with the same key may have
    /// been posted before.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn post(&mut self, message: &Message) -> Result<bool> {
        let query = sqlx::query_scalar("select tenancy.outbox_post($1, $2, $3, $4)")
            .bind(message.topic())
            .bind(message.key())
            .bind(Json(message.payload()))
            .bind(Some(Json(message.secret())).filter(|secret| !secret.is_null()));
        query.fetch_one(self).await.map_err(from_sqlx)
    }
}

impl SystemTx {
    /// Posts `message` on behalf of `tenant`, or of the platform, as [`TenantTx::post`] does.
    ///
    /// # Errors
    /// As any statement.
    ///
    /// # Cancel safety
    /// A dropped future ends the transaction: it can't be committed.
    pub async fn post(&mut self, tenant: Option<TenantId>, message: &Message) -> Result<bool> {
        let query = sqlx::query_scalar("select tenancy.outbox_post_for($1, $2, $3, $4, $5)")
            .bind(tenant.map(TenantId::as_uuid))
            .bind(message.topic())
            .bind(message.key())
            .bind(Json(message.payload()))
            .bind(Some(Json(message.secret())).filter(|secret| !secret.is_null()));
        query.fetch_one(self).await.map_err(from_sqlx)
    }
}
