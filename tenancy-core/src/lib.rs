#![doc = include_str!("../README.md")]

pub mod audit;
pub mod clock;
pub mod context;
pub mod erase;
pub mod error;
pub mod id;
pub mod member;
pub mod outbox;
pub mod quota;
pub mod share;
pub mod storage;
pub mod tenant;

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "object-store")]
pub mod objects;

pub use audit::{Actor, AuditEvent, Outcome};
pub use clock::{Clock, ManualClock, SystemClock};
pub use context::{JobEnvelope, Principal, Role, Subject, TenantContext};
pub use error::{Error, ErrorKind, Result};
pub use id::{TenantHint, TenantId, TenantSlug};
pub use member::{Email, Member, MemberChange, NewMember, Standing};
pub use storage::{TenantCatalog, TenantPage, TenantQuery};
pub use tenant::{ActiveTenant, NewTenant, Tenant, TenantChange, TenantStatus};
