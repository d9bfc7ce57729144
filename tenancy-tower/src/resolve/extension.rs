//! What a layer further out has proved.

use http::request::Parts;
use tenancy_core::Result;

use super::{Identified, ResolveTenant};

/// Takes the [`Identified`] that a layer further out put into the request's extensions: for proofs that need a look-up, such as a
/// session cookie. A client can't set extensions.
///
/// # Security
/// The outer layer vouches for what it puts there. It should also take away the credential that it has read, so that no other resolver
/// judges it again.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtensionResolver;

impl ResolveTenant for ExtensionResolver {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        Ok(request.extensions.get::<Identified>().cloned())
    }

    fn authenticates(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use tenancy_core::{Principal, TenantHint, TenantId};

    use super::*;

    #[test]
    fn only_what_was_put_there_counts() {
        let (mut parts, ()) = Request::new(()).into_parts();
        assert!(ExtensionResolver.resolve(&parts).expect("nothing").is_none());
        let hint = TenantHint::Id(TenantId::new());
        let service = Principal::Service { subject: "robot".parse().expect("subject") };
        parts.extensions.insert(Identified::proven(hint.clone(), service));
        let found = ExtensionResolver.resolve(&parts).expect("read").expect("there");
        assert!(*found.hint() == hint && found.is_proven());
    }
}
