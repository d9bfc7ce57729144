#![doc = include_str!("../README.md")]

pub mod audit;
pub mod backup;
pub mod branding;
pub mod clock;
pub mod config;
pub mod context;
pub mod domain;
pub mod erase;
pub mod error;
pub mod flags;
pub mod id;
pub mod invite;
pub mod member;
pub mod operator;
pub mod outbox;
pub mod provision;
pub mod quota;
pub mod share;
pub mod storage;
pub mod tenant;

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "federation")]
pub mod federation;
#[cfg(feature = "object-store")]
pub mod objects;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use audit::{Actor, AuditEvent, Outcome};
pub use clock::{Clock, ManualClock, SystemClock};
pub use context::{JobEnvelope, Principal, Role, Subject, TenantContext};
pub use domain::{Domain, DomainName, DomainState, TxtResolver};
pub use error::{Error, ErrorKind, Result};
pub use id::{TenantHint, TenantId, TenantSlug};
pub use invite::{Invite, LinkBase, NewInvite};
pub use member::{Email, Member, MemberChange, NewMember, Standing};
pub use operator::{NewImpersonation, NewOperator, Operator, OperatorChange, OperatorRole, TokenDays};
pub use storage::{TenantCatalog, TenantPage, TenantQuery};
pub use tenant::{ActiveTenant, NewTenant, Tenant, TenantChange, TenantStatus};
