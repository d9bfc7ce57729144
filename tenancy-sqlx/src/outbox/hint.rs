//! Hears that something was posted, so that it need not wait for the next look.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};

use crate::db::TenantDb;

const CHANNEL: &str = "tenancy_outbox";
/// Whoever may run SQL may notify: the worker does not look more often for it.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection that only listens; none where a pooler would keep the notifications.
#[derive(Debug)]
pub(super) struct Hint {
    pool: Option<PgPool>,
    listener: Option<PgListener>,
}

impl Hint {
    pub(super) fn new(db: &TenantDb) -> Self {
        let inner = db.inner();
        let connect = || PgPoolOptions::new().max_connections(1).connect_lazy_with((*inner.pool.connect_options()).clone());
        Self { pool: inner.named_statements.then(connect), listener: None }
    }

    /// Waits for a notification. Where none can come, it waits for ever.
    ///
    /// # Cancel safety
    /// A notification may be lost.
    pub(super) async fn heard(&mut self) {
        if self.listener.is_none()
            && let Some(pool) = &self.pool
        {
            self.listener = listen(pool).await;
            // What was posted before is not told.
            if self.listener.is_some() {
                return;
            }
        }
        if let Some(listener) = &mut self.listener {
            if listener.recv().await.is_ok() {
                tokio::time::sleep(PAUSE).await;
                while listener.next_buffered().is_some() {}
                return;
            }
            self.listener = None;
        }
        std::future::pending::<()>().await;
    }
}

async fn listen(pool: &PgPool) -> Option<PgListener> {
    let mut listener = PgListener::connect_with(pool).await.ok()?;
    listener.listen(CHANNEL).await.ok()?;
    Some(listener)
}
