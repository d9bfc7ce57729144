//! The pool can't be had by its field.

use tenancy_sqlx::TenantDb;

fn pool(db: TenantDb) -> sqlx::PgPool {
    db.0.pool.clone()
}

fn main() {}
