//! What is shared, opened and refused, for whoever measures (feature `metrics`).

use tenancy_core::share::Share;
use tenancy_core::{Error, ErrorKind};

/// A share that was offered, or went on to another state.
pub(crate) fn moved(share: &Share) {
    add("share", share.state.as_str(), "done");
}

/// Something that was done about a link.
pub(crate) fn link(state: &'static str) {
    add("link", state, "done");
}

/// Something that was done about a share with another installation.
#[cfg(feature = "federation")]
pub(crate) fn federated(state: &'static str) {
    add("federated", state, "done");
}

/// A share or link that somebody has opened, or was refused.
pub(crate) fn opened<T>(kind: &'static str, opened: &Result<T, Error>) {
    match opened {
        Ok(_) => add(kind, "opened", "done"),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthenticated) => add(kind, "opened", "denied"),
        Err(_) => {}
    }
}

#[cfg(feature = "metrics")]
fn add(kind: &'static str, state: &'static str, outcome: &'static str) {
    metrics::counter!("crossTenant.shares", "kind" => kind, "state" => state, "outcome" => outcome).increment(1);
}

#[cfg(not(feature = "metrics"))]
fn add(_kind: &'static str, _state: &'static str, _outcome: &'static str) {}
