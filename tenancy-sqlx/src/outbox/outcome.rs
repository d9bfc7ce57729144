//! How a delivery ended, and its record.

use std::time::Duration;

use tenancy_core::Result;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::from_sqlx;
use crate::tx::SystemTx;

/// How long a message that was held is left alone.
const HELD: Duration = Duration::from_secs(1);
/// The longest error that is kept, in characters.
const MAX_ERROR: usize = 500;

#[derive(Debug)]
pub(super) enum How {
    Sent,
    Later {
        why: String,
        wait: Duration,
    },
    /// Not tried.
    Held {
        why: String,
    },
    Dead {
        why: String,
    },
}

#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) id: i64,
    pub(super) claim: Uuid,
    pub(super) how: How,
    /// When the delivery began.
    pub(super) since: Instant,
}

impl Outcome {
    /// Records all of them. One whose claim another worker has taken over changes nothing.
    pub(super) async fn record(done: &[Self], tx: &mut SystemTx) -> Result<()> {
        let each = |outcome: &Self| match &outcome.how {
            How::Sent => ("sent", 0.0, None),
            How::Later { why, wait } => ("later", wait.as_secs_f64(), Some(kept(why))),
            How::Held { why } => ("held", HELD.as_secs_f64(), Some(kept(why))),
            How::Dead { why } => ("dead", 0.0, Some(kept(why))),
        };
        sqlx::query(
            "update tenancy.outbox o
                set claim = null, last_error = coalesce(d.why, o.last_error),
                    sent_at = case d.how when 'sent' then clock_timestamp() end,
                    dead_at = case d.how when 'dead' then clock_timestamp() end,
                    attempts = o.attempts - (d.how = 'held')::int,
                    due_at = case when d.how in ('later', 'held') then clock_timestamp() + make_interval(secs => d.wait) else o.due_at end,
                    secret = case when d.how in ('later', 'held') then o.secret end,
                    secret_gone = o.secret_gone or (d.how not in ('later', 'held') and o.secret is not null)
               from unnest($1::bigint[], $2::uuid[], $3::text[], $4::float8[], $5::text[]) d (id, claim, how, wait, why)
              where o.id = d.id and o.claim = d.claim",
        )
        .bind(done.iter().map(|outcome| outcome.id).collect::<Vec<_>>())
        .bind(done.iter().map(|outcome| outcome.claim).collect::<Vec<_>>())
        .bind(done.iter().map(|outcome| each(outcome).0).collect::<Vec<_>>())
        .bind(done.iter().map(|outcome| each(outcome).1).collect::<Vec<_>>())
        .bind(done.iter().map(|outcome| each(outcome).2).collect::<Vec<_>>())
        .execute(tx)
        .await
        .map(drop)
        .map_err(from_sqlx)
    }
}

/// The part of an error that is kept: PostgreSQL has no text with NUL.
fn kept(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(MAX_ERROR).collect()
}
