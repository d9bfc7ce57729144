//! Several resolvers for one request.
//!
//! In both compositions every resolver is asked, a proof leads, and all that is found must be one tenant. They differ in what may be
//! missing.

use std::fmt;

use http::request::Parts;
use tenancy_core::Result;

use super::service::unnamed;
use super::{Identified, ResolveTenant};

/// At least one resolver must find a tenant: a proven one leads, else the first in order. What the others find must agree.
pub struct FirstOf(Vec<Box<dyn ResolveTenant>>);

/// Every resolver must find a tenant, and it must be the same: for example, a token *and* the host that it is meant for.
///
/// A request in which none of them finds anything names no tenant, as usual.
pub struct AllAgree(Vec<Box<dyn ResolveTenant>>);

impl FirstOf {
    /// Starts with `resolver`.
    pub fn new(resolver: impl ResolveTenant) -> Self {
        Self(vec![Box::new(resolver)])
    }

    /// Adds `resolver` after the others.
    #[must_use]
    pub fn then(mut self, resolver: impl ResolveTenant) -> Self {
        self.0.push(Box::new(resolver));
        self
    }
}

impl AllAgree {
    /// Starts with `resolver`.
    pub fn new(resolver: impl ResolveTenant) -> Self {
        Self(vec![Box::new(resolver)])
    }

    /// Also asks `resolver`.
    #[must_use]
    pub fn and(mut self, resolver: impl ResolveTenant) -> Self {
        self.0.push(Box::new(resolver));
        self
    }
}

impl ResolveTenant for FirstOf {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        self.0.iter().try_fold(None, |so_far, resolver| Ok(both(so_far, resolver.resolve(request)?)))
    }

    fn authenticates(&self) -> bool {
        self.0.iter().any(|resolver| resolver.authenticates())
    }
}

impl ResolveTenant for AllAgree {
    fn resolve(&self, request: &Parts) -> Result<Option<Identified>> {
        let (mut found, mut missing) = (None, None);
        for resolver in &self.0 {
            match resolver.resolve(request)? {
                None => missing = missing.or(Some(resolver)),
                some => found = both(found, some),
            }
        }
        match missing {
            Some(resolver) if found.is_some() => Err(unnamed(&**resolver)),
            _ => Ok(found),
        }
    }

    fn authenticates(&self) -> bool {
        self.0.iter().any(|resolver| resolver.authenticates())
    }
}

fn both(one: Option<Identified>, other: Option<Identified>) -> Option<Identified> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.and(other)),
        (one, other) => one.or(other),
    }
}

impl fmt::Debug for FirstOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstOf").field("resolvers", &self.0.len()).finish()
    }
}

impl fmt::Debug for AllAgree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllAgree").field("resolvers", &self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use tenancy_core::{Error, ErrorKind};

    use super::*;

    fn parts() -> Parts {
        http::Request::new(()).into_parts().0
    }

    fn finds(slug: &'static str) -> impl ResolveTenant {
        move |_: &Parts| Ok(Some(Identified::claimed(slug.parse()?)))
    }

    fn finds_nothing(_: &Parts) -> Result<Option<Identified>> {
        Ok(None)
    }

    fn fails(_: &Parts) -> Result<Option<Identified>> {
        Err(Error::invalid("x", "is malformed"))
    }

    #[test]
    fn the_first_leads_and_later_ones_are_still_asked() {
        let found = FirstOf::new(finds_nothing).then(finds("acme")).then(finds("beta")).resolve(&parts()).expect("ok").expect("found");
        assert_eq!(found.hint().to_string(), "acme");
        assert_eq!(found.others, ["beta".parse().expect("slug")]);
        assert!(FirstOf::new(finds_nothing).resolve(&parts()).expect("ok").is_none());
        let error = FirstOf::new(finds("acme")).then(fails).resolve(&parts()).expect_err("a bad hint is not ignored");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn all_must_find_one_or_none_of_them() {
        assert!(AllAgree::new(finds("acme")).and(finds("acme")).resolve(&parts()).expect("ok").is_some());
        assert!(AllAgree::new(finds_nothing).and(finds_nothing).resolve(&parts()).expect("ok").is_none());
        let error = AllAgree::new(finds("acme")).and(finds_nothing).resolve(&parts()).expect_err("one is missing");
        assert_eq!(error.kind(), ErrorKind::TenantNotFound);
    }
}
