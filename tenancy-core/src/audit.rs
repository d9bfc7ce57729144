//! Who did what to which thing, and how it ended.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Subject, TenantId};

/// Whoever an audit event names as its cause.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", content = "id", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Actor {
    /// Somebody who proved nothing.
    Visitor,
    /// A person of a tenant.
    Member(Subject),
    /// A person of the platform.
    Operator(Subject),
    /// A program of a tenant.
    Service(Subject),
    /// The platform's own program: a migration, a schedule, a command.
    System,
}

impl Actor {
    /// The lower-case name of the kind.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Member(_) => "member",
            Self::Operator(_) => "operator",
            Self::Service(_) => "service",
            Self::System => "system",
        }
    }

    /// Who, if the kind has several.
    pub const fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Member(subject) | Self::Operator(subject) | Self::Service(subject) => Some(subject),
            Self::Visitor | Self::System => None,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject() {
            Some(subject) => write!(f, "{}:{subject}", self.kind()),
            None => f.write_str(self.kind()),
        }
    }
}

/// How an audited action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was refused.
    Denied,
}

impl Outcome {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Denied => "denied",
        }
    }
}

/// One entry of the audit log. Append-only: the application's roles can insert, and nobody can change.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AuditEvent {
    /// The tenant it concerns, if it concerns one.
    pub tenant_id: Option<TenantId>,
    /// Who did it.
    pub actor: Actor,
    /// What was done, as `noun.verb`: `tenant.update`, `system.access`.
    pub action: String,
    /// What it was done to.
    pub target: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Anything else worth keeping; never secrets.
    pub detail: Value,
    /// The request it belongs to.
    pub request_id: Option<Uuid>,
}

impl AuditEvent {
    /// `actor` did `action` to `target`.
    pub fn new(actor: Actor, action: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            tenant_id: None,
            actor,
            action: action.into(),
            target: target.into(),
            outcome: Outcome::Done,
            detail: Value::Null,
            request_id: None,
        }
    }

    /// It concerns this tenant.
    #[must_use]
    pub fn with_tenant(mut self, tenant_id: TenantId) -> Self {
        self.tenant_id = Some(tenant_id);
        self
    }

    /// Adds what else is worth keeping.
    #[must_use]
    pub fn with_detail(mut self, detail: Value) -> Self {
        self.detail = detail;
        self
    }
}
