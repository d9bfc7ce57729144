//! What is hard for backups: any schema, what changed since, who else is at work, who may not see or write, and who is killed.

mod as_of;
mod broken;
mod called_off;
mod canary;
mod drift;
mod drilled;
mod kept;
mod new_ids;
mod random;
mod readers;
mod refusals;
mod scheduled;
mod stopped;
mod writers;

use sqlx::PgConnection;
use tenancy_core::TenantContext;

/// The hash of what COPY gives of a tenant's rows: the binary form of every column.
async fn bytes_of(eye: &mut PgConnection, table: &str, cx: &TenantContext) -> Vec<u8> {
    use futures_util::TryStreamExt as _;
    use sha2::Digest as _;
    let sql = format!(
        "copy (select * from {table} t where tenant_id = '{}' order by t::text collate \"C\") to stdout (format binary)",
        cx.tenant_id()
    );
    let mut hash = sha2::Sha256::new();
    let mut rows = eye.copy_out_raw(&sql).await.expect("a copy");
    while let Some(bytes) = rows.try_next().await.expect("bytes") {
        hash.update(&bytes);
    }
    hash.finalize().to_vec()
}
