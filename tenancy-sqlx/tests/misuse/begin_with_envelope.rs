//! A job is established again before it runs.

use tenancy_core::JobEnvelope;
use tenancy_sqlx::TenantDb;

async fn worker(db: TenantDb, job: JobEnvelope) {
    let _ = db.begin(&job).await;
}

fn main() {}
