//! Feature flags: defined once for all tenants, and the same for one tenant on every node and at every time.
//!
//! The first of these that applies decides, and is told as the [`Reason`]:
//!
//! 1. the kill switch: everybody gets the default, whatever else is set;
//! 2. the tenant's own value, in [`Tenant::flags`];
//! 3. a cohort: the tenant's plan, or the tenant itself, is named;
//! 4. the rollout: the tenant's bucket is below the number of buckets that are on;
//! 5. the default.
//!
//! A bucket is one of 10 000, and a hash of the flag and the tenant: raising the rollout turns nobody off, and the tenants that are first with
//! one flag are not those that are first with another.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::{Tenant, TenantId};

/// How many buckets there are.
pub const BUCKETS: u16 = 10_000;
/// The most definitions of a service.
pub const MAX_DEFINITIONS: usize = 1000;

/// What a flag is for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlagValue {
    /// On or off.
    Bool(bool),
    /// One of the flag's variants.
    Variant(String),
}

/// Which values a flag has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FlagKind {
    /// True and false.
    Bool,
    /// Those of a list.
    Variant,
}

impl FlagKind {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Variant => "variant",
        }
    }
}

/// A flag as operators define it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FlagDefinition {
    /// What it is for: at most 500 characters.
    #[serde(default)]
    pub description: String,
    /// Which values it has.
    pub kind: FlagKind,
    /// The variants: 2 to 20 of them, of at most 64 characters, if it is of that kind.
    #[serde(default)]
    pub variants: Vec<String>,
    /// What nobody in particular gets.
    pub default: FlagValue,
    /// What the cohorts and the rollout get.
    pub on: FlagValue,
    /// How many of the 10 000 buckets are on: 2500 is a quarter of the tenants.
    #[serde(default)]
    pub rollout: u16,
    /// The plans whose tenants are on: at most 100.
    #[serde(default)]
    pub plans: Vec<String>,
    /// The tenants that are on: at most 100.
    #[serde(default)]
    pub tenants: Vec<TenantId>,
    /// Whether everybody gets the default.
    #[serde(default)]
    pub killed: bool,
}

impl FlagDefinition {
    /// A flag that is off for everybody.
    pub fn off() -> Self {
        Self {
            description: String::new(),
            kind: FlagKind::Bool,
            variants: Vec::new(),
            default: FlagValue::Bool(false),
            on: FlagValue::Bool(true),
            rollout: 0,
            plans: Vec::new(),
            tenants: Vec::new(),
            killed: false,
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), naming the field.
    pub fn check(&self) -> Result<()> {
        if self.description.chars().count() > 500 || self.description.contains('\0') {
            return Err(Error::invalid("description", "must have at most 500 characters, and not U+0000"));
        }
        let plain = |text: &String| (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        let distinct = self.variants.iter().collect::<HashSet<_>>().len() == self.variants.len();
        match self.kind {
            FlagKind::Bool if !self.variants.is_empty() => return Err(Error::invalid("variants", "must be left out of a bool")),
            FlagKind::Variant if !(2..=20).contains(&self.variants.len()) || !distinct || !self.variants.iter().all(plain) => {
                return Err(Error::invalid("variants", "must be 2 to 20 different names of 1 to 64 characters"));
            }
            _ => {}
        }
        for (field, value) in [("default", &self.default), ("on", &self.on)] {
            if !fits(self.kind, &self.variants, value) {
                return Err(Error::invalid(field, "must be true or false, or one of the variants"));
            }
        }
        if self.rollout > BUCKETS {
            return Err(Error::invalid("rollout", "must be 0 to 10000"));
        }
        if self.plans.len() > 100 || !self.plans.iter().all(plain) {
            return Err(Error::invalid("plans", "must be at most 100 names"));
        }
        if self.tenants.len() > 100 {
            return Err(Error::invalid("tenants", "must be at most 100: give others their own value"));
        }
        Ok(())
    }
}

/// Whether `name` can be a flag's.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) at `flag`.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-');
    if name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::invalid("flag", "must have 1 to 64 characters of a-z, 0-9, '_', '.' and '-', the first a letter"))
}

fn fits(kind: FlagKind, variants: &[String], value: &FlagValue) -> bool {
    match (kind, value) {
        (FlagKind::Bool, FlagValue::Bool(_)) => true,
        (FlagKind::Variant, FlagValue::Variant(name)) => variants.contains(name),
        _ => false,
    }
}

/// Why a flag has its value for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Everybody gets the default.
    KillSwitch,
    /// The tenant has a value of its own.
    Override,
    /// The tenant's plan or the tenant is named.
    Cohort,
    /// The tenant's bucket is on.
    Rollout,
    /// Nothing else applies.
    Default,
}

/// What a flag is for a tenant, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// The value.
    pub value: FlagValue,
    /// Why.
    pub reason: Reason,
}

impl Evaluation {
    /// Whether the value is true.
    pub fn is_on(&self) -> bool {
        self.value == FlagValue::Bool(true)
    }
}

/// A flag as nodes evaluate it: the tenants of its cohort are there as [digests](digest).
#[derive(Debug, Clone)]
pub struct Flag {
    name: String,
    kind: FlagKind,
    variants: Vec<String>,
    default: FlagValue,
    on: FlagValue,
    rollout: u16,
    plans: Vec<String>,
    cohort: HashSet<String>,
    killed: bool,
}

impl Flag {
    /// The flag `name`, where the tenants of `definition` are left out and their digests given.
    pub fn new(name: impl Into<String>, definition: FlagDefinition, cohort: impl IntoIterator<Item = String>) -> Self {
        let FlagDefinition { kind, variants, default, on, rollout, plans, killed, .. } = definition;
        Self { name: name.into(), kind, variants, default, on, rollout, plans, cohort: cohort.into_iter().collect(), killed }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for `tenant`.
    pub fn evaluate(&self, tenant: &Tenant) -> Evaluation {
        let (value, reason) = self.decide(tenant);
        Evaluation { value: value.clone(), reason }
    }

    fn decide(&self, tenant: &Tenant) -> (FlagValue, Reason) {
        if self.killed {
            return (self.default.clone(), Reason::KillSwitch);
        }
        let own = tenant.flags.get(&self.name).and_then(|value| FlagValue::deserialize(value).ok());
        if let Some(own) = own.filter(|value| fits(self.kind, &self.variants, value)) {
            return (own, Reason::Override);
        }
        if self.plans.contains(&tenant.plan) {
            return (self.on.clone(), Reason::Cohort);
        }
        let hash = hash(&self.name, tenant.id);
        if !self.cohort.is_empty() && self.cohort.contains(&hex(&hash)) {
            return (self.on.clone(), Reason::Cohort);
        }
        if bucket(&hash) < self.rollout {
            return (self.on.clone(), Reason::Rollout);
        }
        (self.default.clone(), Reason::Default)
    }
}

/// How a cohort names a tenant to nodes: SHA-256 of the flag's name, a zero byte and the tenant's id, in hexadecimal.
pub fn digest(flag: &str, tenant: TenantId) -> String {
    hex(&hash(flag, tenant))
}

fn hash(flag: &str, tenant: TenantId) -> [u8; 32] {
    Sha256::new().chain_update(flag).chain_update([0]).chain_update(tenant.as_uuid()).finalize().into()
}

fn hex(hash: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One of [`BUCKETS`], by the first eight bytes.
fn bucket(hash: &[u8; 32]) -> u16 {
    let number = hash[..8].iter().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    u16::try_from(number % u64::from(BUCKETS)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::NewTenant;

    fn tenant(n: u128) -> Tenant {
        let mut new = NewTenant::new(format!("tenant-{n}").parse().expect("a slug"), "A tenant");
        new.id = TenantId::from_uuid(Uuid::from_u128(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) | 1)).expect("an id");
        Tenant::new(new, chrono::DateTime::UNIX_EPOCH).expect("valid")
    }

    fn flag(name: &str, change: impl FnOnce(&mut FlagDefinition)) -> Flag {
        let mut definition = FlagDefinition::off();
        change(&mut definition);
        definition.check().expect("sensible");
        let cohort: Vec<String> = definition.tenants.iter().map(|id| digest(name, *id)).collect();
        Flag::new(name, definition, cohort)
    }

    #[test]
    fn a_rollout_takes_its_share_grows_without_turning_anybody_off_and_stays() {
        let tenants: Vec<Tenant> = (0..10_000).map(tenant).collect();
        for name in ["beta", "checkout.new", "x"] {
            let mut before: HashSet<TenantId> = HashSet::new();
            for rollout in [0, 1, 100, 1000, 2500, 5000, 7500, 9999, 10_000] {
                let flag = flag(name, |definition| definition.rollout = rollout);
                let on: HashSet<TenantId> = tenants.iter().filter(|tenant| flag.evaluate(tenant).is_on()).map(|tenant| tenant.id).collect();
                assert!(before.is_subset(&on), "{name}: raised to {rollout}, somebody is off");
                // Five standard deviations of the binomial distribution.
                let (share, slack) = (f64::from(rollout), 5.0 * (f64::from(rollout) * (1.0 - f64::from(rollout) / 10_000.0)).sqrt() + 0.5);
                let count = f64::from(u32::try_from(on.len()).expect("few"));
                assert!((count - share).abs() <= slack, "{name}: {count} are on at {rollout}");
                assert_eq!(on, tenants.iter().filter(|tenant| flag.evaluate(tenant).is_on()).map(|tenant| tenant.id).collect());
                before = on;
            }
        }
        // Two flags at a half have a quarter in common, not all.
        let (one, other) = (flag("one", |definition| definition.rollout = 5000), flag("other", |definition| definition.rollout = 5000));
        let both = tenants.iter().filter(|tenant| one.evaluate(tenant).is_on() && other.evaluate(tenant).is_on()).count();
        assert!((2300..=2700).contains(&both), "{both}");
    }

    #[test]
    fn buckets_never_change() {
        // Written down: another number here would turn tenants on and off at an update.
        let id: TenantId = "0198c0de-0000-7000-8000-00000000beef".parse().expect("an id");
        let known = [("beta", bucket(&hash("beta", id))), ("checkout", bucket(&hash("checkout", id)))];
        assert_eq!(known, [("beta", 4388), ("checkout", 3768)]);
    }

    #[test]
    fn the_first_reason_that_applies_decides() {
        let mut acme = tenant(1);
        let reason = |flag: &Flag, tenant: &Tenant| {
            let Evaluation { value, reason } = flag.evaluate(tenant);
            (json!(value), reason)
        };
        assert_eq!(reason(&flag("f", |_| ()), &acme), (json!(false), Reason::Default));
        assert_eq!(reason(&flag("f", |f| f.rollout = BUCKETS), &acme), (json!(true), Reason::Rollout));
        assert_eq!(reason(&flag("f", |f| f.plans = vec!["standard".to_owned()]), &acme), (json!(true), Reason::Cohort));
        let named = flag("f", |f| f.tenants = vec![acme.id]);
        assert_eq!(reason(&named, &acme), (json!(true), Reason::Cohort));
        assert_eq!(reason(&named, &tenant(2)), (json!(false), Reason::Default), "another tenant is not named");
        acme.flags.insert("f".to_owned(), json!(false));
        assert_eq!(reason(&flag("f", |f| (f.rollout, f.tenants) = (BUCKETS, vec![acme.id])), &acme), (json!(false), Reason::Override));
        acme.flags.insert("f".to_owned(), json!(true));
        assert_eq!(reason(&flag("f", |f| f.killed = true), &acme), (json!(false), Reason::KillSwitch));
        // A value that the flag does not have is none.
        for odd in [json!("on"), json!(1), json!(null), json!({})] {
            acme.flags.insert("f".to_owned(), odd);
            assert_eq!(reason(&flag("f", |_| ()), &acme), (json!(false), Reason::Default));
        }
        let colour = flag("f", |f| {
            (f.kind, f.variants) = (FlagKind::Variant, vec!["red".to_owned(), "blue".to_owned()]);
            (f.default, f.on) = (FlagValue::Variant("red".to_owned()), FlagValue::Variant("blue".to_owned()));
        });
        for (own, value, why) in [("blue", "blue", Reason::Override), ("green", "red", Reason::Default)] {
            acme.flags.insert("f".to_owned(), json!(own));
            assert_eq!(reason(&colour, &acme), (json!(value), why));
        }
    }

    #[test]
    fn a_definition_must_make_sense() {
        let of = |value: Value| serde_json::from_value::<FlagDefinition>(value).map_err(|e| e.to_string());
        let good = of(json!({ "kind": "variant", "variants": ["a", "b"], "default": "a", "on": "b", "rollout": 10000 })).expect("read");
        good.check().expect("sensible");
        for (change, field) in [
            (json!({ "kind": "bool", "default": false, "on": "yes" }), "on"),
            (json!({ "kind": "bool", "default": "no", "on": true }), "default"),
            (json!({ "kind": "bool", "default": false, "on": true, "variants": ["a"] }), "variants"),
            (json!({ "kind": "variant", "default": "a", "on": "a", "variants": ["a"] }), "variants"),
            (json!({ "kind": "variant", "default": "a", "on": "a", "variants": ["a", "a"] }), "variants"),
            (json!({ "kind": "variant", "default": "a", "on": "c", "variants": ["a", "b"] }), "on"),
            (json!({ "kind": "variant", "default": "a", "on": "a", "variants": ["a", "b\r\n"] }), "variants"),
            (json!({ "kind": "bool", "default": false, "on": true, "rollout": 10001 }), "rollout"),
            (json!({ "kind": "bool", "default": false, "on": true, "plans": vec!["p"; 101] }), "plans"),
            (json!({ "kind": "bool", "default": false, "on": true, "tenants": vec![tenant(1).id; 101] }), "tenants"),
            (json!({ "kind": "bool", "default": false, "on": true, "description": "x".repeat(501) }), "description"),
        ] {
            assert_eq!(of(change).expect("read").check().expect_err(field).field(), Some(field));
        }
        assert!(of(json!({ "kind": "bool", "default": false, "on": true, "percent": 5 })).is_err());
        for bad in ["", "A", "1a", "a b", "a\r\n", "é", &"a".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("checkout.new-flow_2").is_ok());
    }
}
