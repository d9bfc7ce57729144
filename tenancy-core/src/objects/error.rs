//! Errors that show a tenant's own path and nothing of the store below.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::Error as StoreError;

use crate::{Error, ErrorKind};

/// The name under which errors of no better kind are reported.
pub(super) const STORE: &str = "TenantStore";

/// A path that was refused, and why.
#[derive(Debug)]
struct Refused(&'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path: {}", self.0)
    }
}

impl StdError for Refused {}

/// The refusal of a write under a context that changes nothing.
#[derive(Debug)]
struct ReadOnly;

impl fmt::Display for ReadOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is read-only: nothing can be changed here")
    }
}

impl StdError for ReadOnly {}

pub(super) fn read_only() -> StoreError {
    StoreError::Generic { store: STORE, source: ReadOnly.into() }
}

pub(super) fn refused(why: &'static str) -> StoreError {
    StoreError::Generic { store: STORE, source: Refused(why).into() }
}

pub(super) fn is_refused(error: &StoreError) -> bool {
    matches!(error, StoreError::Generic { source, .. } if source.is::<Refused>() || source.is::<ReadOnly>())
}

/// What an operation does at its path: decides what a file in place of a folder, or a folder in place of a file, means to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// A new error of the same kind as `error`, about `path`. Nothing of the text of `error` is kept, for it names files, keys, buckets
/// or addresses of the store.
pub(super) fn rebuild(error: &StoreError, path: &str, access: Access) -> StoreError {
    let path = path.to_owned();
    match error {
        StoreError::NotFound { .. } => StoreError::NotFound { path, source: "there is no such object".into() },
        StoreError::AlreadyExists { .. } => StoreError::AlreadyExists { path, source: "there is such an object".into() },
        StoreError::Precondition { .. } => StoreError::Precondition { path, source: "the object is another than expected".into() },
        StoreError::NotModified { .. } => StoreError::NotModified { path, source: "the object is the one the caller has".into() },
        StoreError::PermissionDenied { .. } => StoreError::PermissionDenied { path, source: "the store refuses its credentials".into() },
        StoreError::Unauthenticated { .. } => StoreError::Unauthenticated { path, source: "the store refuses its credentials".into() },
        StoreError::NotSupported { .. } => StoreError::NotSupported { source: "the store can't do this".into() },
        StoreError::NotImplemented { .. } => {
            StoreError::NotImplemented { operation: "of this kind".to_owned(), implementer: "the object store".to_owned() }
        }
        _ => match (io_kind(error), access) {
            (Some(io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory), Access::Read) => {
                StoreError::NotFound { path, source: "there is no such object".into() }
            }
            (Some(io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty), Access::Write) => {
                StoreError::AlreadyExists { path, source: "a part of this path is an object, or this object's name a folder".into() }
            }
            (Some(kind), _) => StoreError::Generic { store: STORE, source: format!("the object store failed: {kind}").into() },
            (None, _) => StoreError::Generic { store: STORE, source: "the object store failed".into() },
        },
    }
}

/// What the operating system said, if it is among the causes; its text is fixed.
fn io_kind(error: &StoreError) -> Option<io::ErrorKind> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

/// The path that an error of a store names, as that store writes it.
pub(super) fn path_of(error: &StoreError) -> Option<&str> {
    match error {
        StoreError::NotFound { path, .. }
        | StoreError::AlreadyExists { path, .. }
        | StoreError::Precondition { path, .. }
        | StoreError::NotModified { path, .. }
        | StoreError::PermissionDenied { path, .. }
        | StoreError::Unauthenticated { path, .. } => Some(path),
        _ => None,
    }
}

/// The kit's error for an error of a [`TenantStore`](super::TenantStore), to be shown to the tenant.
///
/// | of the store | kind |
/// |---|---|
/// | a refused path | [`Invalid`](ErrorKind::Invalid) at `path` |
/// | a write under a read-only context | [`Forbidden`](ErrorKind::Forbidden) |
/// | `NotFound` | [`NotFound`](ErrorKind::NotFound) |
/// | `AlreadyExists` | [`Conflict`](ErrorKind::Conflict) |
/// | `Precondition`, `NotModified` | [`VersionMismatch`](ErrorKind::VersionMismatch) |
/// | `PermissionDenied`, `Unauthenticated`, `NotSupported`, `NotImplemented` | [`Misconfigured`](ErrorKind::Misconfigured) |
/// | any other | [`Unavailable`](ErrorKind::Unavailable) |
pub fn into_error(error: StoreError) -> Error {
    let (kind, message) = match &error {
        StoreError::Generic { source, .. } if source.is::<ReadOnly>() => return Error::new(ErrorKind::Forbidden, ReadOnly.to_string()),
        StoreError::Generic { source, .. } => match source.downcast_ref::<Refused>() {
            Some(Refused(why)) => return Error::invalid("path", *why),
            None => (ErrorKind::Unavailable, "the object store failed: try again later"),
        },
        StoreError::NotFound { .. } => return Error::not_found().with_source(error),
        StoreError::AlreadyExists { .. } => (ErrorKind::Conflict, "there is an object at this path"),
        StoreError::Precondition { .. } => (ErrorKind::VersionMismatch, "the object was changed meanwhile: read it again"),
        StoreError::NotModified { .. } => (ErrorKind::VersionMismatch, "the object was not changed"),
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
            (ErrorKind::Misconfigured, "the object store refuses the service's credentials")
        }
        StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => {
            (ErrorKind::Misconfigured, "the object store that is set up can't do this")
        }
        _ => (ErrorKind::Unavailable, "the object store failed: try again later"),
    };
    Error::new(kind, message).with_source(error)
}
