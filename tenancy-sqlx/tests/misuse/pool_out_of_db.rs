//! The pool can't be had.

use tenancy_sqlx::TenantDb;

fn pool(db: &TenantDb) -> &sqlx::PgPool {
    db.pool()
}

fn main() {}
