//! sqlx's errors as the kit's: one match from SQLSTATE to [`ErrorKind`].

use tenancy_core::{Error, ErrorKind};

/// What a failed statement means to its caller.
///
/// The message is safe to show: SQL, DETAIL (which can print rows) and names of the schema stay in the private source.
///
/// ```
/// # use tenancy_core::{ErrorKind, Result};
/// # async fn name(mut tx: tenancy_sqlx::TenantTx) -> Result<String> {
/// sqlx::query_scalar("select name from projects limit 1").fetch_one(&mut tx).await.map_err(tenancy_sqlx::from_sqlx)
/// # }
/// assert_eq!(tenancy_sqlx::from_sqlx(sqlx::Error::RowNotFound).kind(), ErrorKind::NotFound);
/// ```
pub fn from_sqlx(error: sqlx::Error) -> Error {
    use sqlx::Error as E;
    let (kind, message) = match error {
        // What our own executor refused travels through sqlx's error type.
        E::AnyDriverError(inner) => match inner.downcast::<Error>() {
            Ok(ours) => return *ours,
            Err(other) => return Error::new(ErrorKind::Internal, "the database driver failed").with_source(other),
        },
        E::RowNotFound => return Error::not_found(),
        E::Database(ref db) => classify(db.code().as_deref()),
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
            (ErrorKind::Unavailable, "the database is away or busy: try again later")
        }
        E::Configuration(_) => (ErrorKind::Misconfigured, "the database URL is not valid: it must be postgres://user@host:port/database"),
        _ => (ErrorKind::Internal, "the statement could not be run"),
    };
    Error::new(kind, message).with_source(error)
}

/// [`from_sqlx`], for a statement that writes a tenant's catalog row.
pub(crate) fn from_tenant_row(error: sqlx::Error) -> Error {
    if error.as_database_error().is_some_and(|db| db.code().as_deref() == Some("55006")) {
        return Error::new(ErrorKind::Conflict, "the tenant is being erased").with_source(error);
    }
    from_sqlx(error)
}

/// From SQLSTATE to kind and words.
fn classify(sqlstate: Option<&str>) -> (ErrorKind, &'static str) {
    match sqlstate.unwrap_or_default() {
        "23505" | "23P01" => (ErrorKind::Conflict, "a resource with this value exists already"),
        "23503" => (ErrorKind::Conflict, "it refers to a resource that does not exist, or is still referred to"),
        "23502" | "23514" => (ErrorKind::Invalid, "a value breaks a rule of the database"),
        "22001" | "22003" | "22007" | "22008" | "22021" | "22P02" | "22P05" => (ErrorKind::Invalid, "a value can't be stored"),
        // A write that WITH CHECK refuses, of a policy or of a view, or a table that the role may not touch.
        "42501" | "44000" => (ErrorKind::Forbidden, "the database refused this for the current tenant"),
        "25006" => (ErrorKind::Forbidden, "this is read-only: nothing can be changed here"),
        "25P02" => (ErrorKind::TransactionAborted, "a statement of this transaction failed, so nothing was kept"),
        "25P01" => (ErrorKind::TransactionAborted, "the transaction was ended by a statement in it"),
        "40001" | "40P01" | "55P03" => (ErrorKind::Retry, "another transaction was in the way: run this one again"),
        "57014" => (ErrorKind::Unavailable, "the statement took too long and was cancelled"),
        "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "53400" | "55000" | "25P03" => {
            (ErrorKind::Unavailable, "the database is away or busy: try again later")
        }
        state if state.starts_with("08") || state.starts_with("53") => {
            (ErrorKind::Unavailable, "the database is away or busy: try again later")
        }
        state if state.starts_with("28") || state == "3D000" => {
            (ErrorKind::Misconfigured, "the database refused the login: check the URL's user, password and database")
        }
        _ => (ErrorKind::Internal, "the statement could not be run"),
    }
}

/// Whether PostgreSQL refused for want of a privilege.
pub(crate) fn is_denied(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(db) if db.code().as_deref() == Some("42501"))
}

/// Whether another session was changing the same row of a catalog at that moment: a second try does it.
pub(crate) fn is_concurrent(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|db| db.message().starts_with("tuple concurrently"))
}

/// Whether the connection itself is gone, so that the same statement may work on another one.
pub(crate) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(db) => matches!(db.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "57P05" | "08006" | "08P01")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_error_comes_back_whole() {
        let ours = Error::new(ErrorKind::TransactionAborted, "x");
        assert_eq!(from_sqlx(sqlx::Error::AnyDriverError(Box::new(ours))).kind(), ErrorKind::TransactionAborted);
    }

    #[test]
    fn states_are_told_apart() {
        for (state, kind) in [
            ("23505", ErrorKind::Conflict),
            ("42501", ErrorKind::Forbidden),
            ("44000", ErrorKind::Forbidden),
            ("40P01", ErrorKind::Retry),
            ("53200", ErrorKind::Unavailable),
            ("42703", ErrorKind::Internal),
            ("", ErrorKind::Internal),
        ] {
            assert_eq!(classify(Some(state)).0, kind, "{state}");
        }
    }
}
