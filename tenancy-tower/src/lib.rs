// The README's examples need these features.
#![cfg_attr(all(feature = "axum", feature = "jwks-url"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "axum", feature = "jwks-url")),
    doc = "A tower layer that establishes each request's tenant: see the README."
)]

pub mod admit;
#[cfg(feature = "axum")]
pub mod axum;
pub mod resolve;
pub mod response;

pub use admit::{AdmitLayer, AdmitService, AdmittedBody};
#[cfg(feature = "jwt")]
pub use resolve::{Algorithm, JwtResolver, KeySet, Keys};
pub use resolve::{
    AllAgree, ExtensionResolver, FirstOf, HeaderResolver, HostResolver, Identified, PathResolver, ResolveTenant, ResolveTenantLayer,
    ResolveTenantService,
};
