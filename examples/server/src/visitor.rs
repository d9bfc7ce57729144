//! Who is asking where credentials are not needed: a sign-in page is shown to people who have none yet.

use std::sync::Arc;

use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use tenancy_core::Result;
use tenancy_tower::{HostResolver, Identified, ResolveTenant};

/// The service's resolver; without credentials, also the host alone, where one is given.
///
/// # Security
/// Credentials that are there are never passed over: a bad token is refused, and one for another host's tenant too.
#[derive(Debug)]
pub(crate) struct Callers<R> {
    all: Arc<R>,
    host: Option<HostResolver>,
}

impl<R> Callers<R> {
    /// Nobody without credentials.
    pub(crate) fn signed_in(all: &Arc<R>) -> Self {
        Self { all: Arc::clone(all), host: None }
    }

    /// Also visitors of a tenant's host.
    pub(crate) fn or_visiting(all: &Arc<R>, host: Option<HostResolver>) -> Self {
        Self { all: Arc::clone(all), host }
    }
}

impl<R: ResolveTenant> ResolveTenant for Callers<R> {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        match &self.host {
            Some(host) if !request.headers.contains_key(AUTHORIZATION) && request.extensions.get::<Identified>().is_none() => {
                host.resolve(request)
            }
            _ => self.all.resolve(request),
        }
    }

    fn authenticates(&self) -> bool {
        self.all.authenticates()
    }
}
