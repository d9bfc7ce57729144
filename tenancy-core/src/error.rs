//! One opaque error for the three crates.
//!
//! An [`Error`] has a [`kind`](Error::kind) to branch on, a message that is safe to show to a tenant (no SQL, no other tenant's
//! data, no storage prefix), and a private [`source`](std::error::Error::source) that is logged once, at the edge.

use std::borrow::Cow;
use std::fmt;

/// The result of the kit's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a caller can act on it.
///
/// Each kind has one stable [`code`](ErrorKind::code) and becomes one HTTP status, in `tenancy_tower::response`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Input that can never be accepted: [`Error::field`] names what to change.
    Invalid,
    /// No proof of identity, or one that doesn't hold.
    Unauthenticated,
    /// The identity is known and may not do this.
    Forbidden,
    /// There is no such thing for this caller; another tenant's thing answers exactly so.
    NotFound,
    /// No tenant can be established: unknown, erased, foreign, or (to outsiders) suspended.
    TenantNotFound,
    /// The caller's own tenant exists and is not active.
    TenantInactive,
    /// The state of the thing forbids this: a name taken, an illegal lifecycle edge.
    Conflict,
    /// The thing has changed since the caller read it.
    VersionMismatch,
    /// The input is larger than allowed.
    TooLarge,
    /// The tenant would have more of something than its quota allows. Nothing was kept.
    QuotaExceeded,
    /// The transaction can't be committed: a statement in it failed, or it was ended by hand. Nothing was kept.
    TransactionAborted,
    /// The database chose this transaction as a victim (serialization failure, deadlock): run it again.
    Retry,
    /// The connection was lost during COMMIT: the work may or may not have been kept.
    OutcomeUnknown,
    /// A dependency is away or out of capacity; nothing was done.
    Unavailable,
    /// The set-up is wrong: the message says what to change.
    Misconfigured,
    /// A defect.
    Internal,
}

impl ErrorKind {
    /// The stable, kebab-case name of this kind, as used in problem documents and logs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::TenantNotFound => "tenant-not-found",
            Self::TenantInactive => "tenant-inactive",
            Self::Conflict => "conflict",
            Self::VersionMismatch => "version-mismatch",
            Self::TooLarge => "too-large",
            Self::QuotaExceeded => "quota-exceeded",
            Self::TransactionAborted => "transaction-aborted",
            Self::Retry => "retry",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::Unavailable => "unavailable",
            Self::Misconfigured => "misconfigured",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What went wrong: a kind, a message that is safe to show, and a private source.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    message: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`, whose `message` a tenant may see.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Repr { kind, message: message.into(), field: None, source: None }))
    }

    /// [`ErrorKind::Invalid`] at `field` (a path such as `branding.theme.primary`); `message` says what is accepted.
    pub fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(ErrorKind::Invalid, message);
        error.0.field = Some(field.into());
        error
    }

    /// The answer for every tenant that can't be established: always the same words.
    pub fn tenant_not_found() -> Self {
        Self::new(ErrorKind::TenantNotFound, "there is no such tenant")
    }

    /// The answer for a thing that is absent or another tenant's: always the same words.
    pub fn not_found() -> Self {
        Self::new(ErrorKind::NotFound, "there is no such resource")
    }

    /// Adds the private cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The path of the input that is at fault, for [`ErrorKind::Invalid`].
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The message alone, without the field.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the same call may succeed later without a change.
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Unavailable | ErrorKind::Retry)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.field {
            Some(field) => write!(f, "{field}: {}", self.0.message),
            None => f.write_str(&self.0.message),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("message", &self.0.message);
        if let Some(field) = &self.0.field {
            out.field("field", field);
        }
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        out.finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_shows_the_field_and_hides_the_source() {
        let error = Error::invalid("slug", "must be a DNS label").with_source("select secret from t");
        assert_eq!(error.to_string(), "slug: must be a DNS label");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(std::error::Error::source(&error).map(ToString::to_string).as_deref(), Some("select secret from t"));
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
