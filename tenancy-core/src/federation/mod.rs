//! Shares between installations: what one signs for another, and how the other verifies it. No I/O: `now`, the keys that were pinned and
//! the random bits are parameters.
//!
//! - A [`Capability`] is an offer: the owner's installation says that a tenant of another one may read one resource.
//! - A [`Proof`] goes with each request for it: the target's installation shows that it is itself, for one method and path, once. Whoever
//!   has stolen a capability can't make one.
//! - A [`Rotation`] is how an installation says, with the key that others have pinned, which key comes next.
//!
//! ```
//! # fn main() -> tenancy_core::Result<()> {
//! use chrono::DateTime;
//! use tenancy_core::federation::{Document as _, InstallationKey, Nonce, Origin, Proof, Unverified};
//!
//! let (us, them): (Origin, Origin) = ("https://a.example.com".parse()?, "https://b.example.com".parse()?);
//! let (key, now) = (InstallationKey::new([7; 32]), DateTime::from_timestamp(1_800_000_000, 0).expect("a time"));
//! let proof = Proof {
//!     issuer: us,
//!     audience: them.clone(),
//!     method: "GET".to_owned(),
//!     path: "/x".to_owned(),
//!     capability: Nonce::new([1; 16]),
//!     issued_at: now,
//!     nonce: Nonce::new([2; 16]),
//! };
//! let text = proof.sign(&key)?;
//! // The other side: `issuer` tells which keys to look up.
//! let (proof, _) = Unverified::<Proof>::parse(&text)?.verify(&[key.public()], &them, now)?;
//! assert_eq!(proof.path, "/x");
//! # Ok(()) }
//! ```

use chrono::serde::ts_seconds;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::share::{Perms, ResourceRef};
use crate::{Error, Result, TenantHint, TenantId};

mod names;
mod signed;

pub use names::{InstallationKey, Nonce, Origin, PublicKey};
pub use signed::{Document, MAX_TEXT, Unverified};

/// How long a [`Proof`] or a [`Rotation`] is believed, and how far two installations' clocks may be apart.
pub const FRESH: TimeDelta = TimeDelta::seconds(60);
/// The longest time that a capability lasts.
pub const MAX_LIFETIME: TimeDelta = TimeDelta::days(366);

/// An offer to a tenant of another installation: to read one resource, until it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capability {
    /// The owner's installation.
    pub issuer: Origin,
    /// The target's.
    pub audience: Origin,
    /// Whose the resource is.
    pub owner: TenantId,
    /// What the owner is called there, for people.
    pub owner_name: String,
    /// To whom: an id or slug of the audience's.
    pub target: String,
    /// Which share, at the issuer's.
    pub share: Uuid,
    /// What.
    pub resource: ResourceRef,
    /// What may be done with it: for now, only [`Read`](Perms::Read) is believed.
    pub perms: Perms,
    /// Since when it holds.
    #[serde(with = "ts_seconds")]
    pub not_before: DateTime<Utc>,
    /// Until when it holds.
    #[serde(with = "ts_seconds")]
    pub expires_at: DateTime<Utc>,
    /// What tells the issuer, in each [`Proof`], that the capability is at hand.
    pub nonce: Nonce,
}

impl signed::sealed::Rules for Capability {
    const KIND: &'static str = "capability";

    fn issuer(&self) -> &Origin {
        &self.issuer
    }

    fn holds(&self, audience: &Origin, now: DateTime<Utc>) -> bool {
        let name = self.owner_name.chars();
        self.audience == *audience
            && self.perms == Perms::Read
            && self.not_before <= now + FRESH
            && now < self.expires_at
            && self.expires_at - self.not_before <= MAX_LIFETIME
            && name.clone().count() <= 200
            && !name.clone().any(char::is_control)
            && check_target(&self.target).is_ok()
    }
}

impl Document for Capability {}

/// What a tenant of another installation can be called: an id or a slug.
///
/// # Errors
/// [`Invalid`](crate::ErrorKind::Invalid) at `target`.
pub fn check_target(text: &str) -> Result<()> {
    match text.parse() {
        Ok(TenantHint::Id(_) | TenantHint::Slug(_)) => Ok(()),
        _ => Err(Error::invalid("target", "must be an id or slug of the other installation's")),
    }
}

/// One request of one installation to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Who asks.
    pub issuer: Origin,
    /// Who is asked.
    pub audience: Origin,
    /// The request's method. It has no query and no body.
    pub method: String,
    /// The request's path.
    pub path: String,
    /// That of the capability by which it is asked.
    pub capability: Nonce,
    /// When it was signed.
    #[serde(with = "ts_seconds")]
    pub issued_at: DateTime<Utc>,
    /// Used once: whoever is asked keeps it for as long as the proof is believed.
    pub nonce: Nonce,
}

impl signed::sealed::Rules for Proof {
    const KIND: &'static str = "proof";

    fn issuer(&self) -> &Origin {
        &self.issuer
    }

    fn holds(&self, audience: &Origin, now: DateTime<Utc>) -> bool {
        self.audience == *audience && (now - self.issued_at).abs() <= FRESH
    }
}

impl Document for Proof {}

/// Which key comes next, signed by the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// Whose.
    pub issuer: Origin,
    /// The key that comes next.
    pub next: PublicKey,
    /// When it was signed: anew for whoever asks.
    #[serde(with = "ts_seconds")]
    pub issued_at: DateTime<Utc>,
}

impl signed::sealed::Rules for Rotation {
    const KIND: &'static str = "rotation";

    fn issuer(&self) -> &Origin {
        &self.issuer
    }

    /// It is for everybody.
    fn holds(&self, _: &Origin, now: DateTime<Utc>) -> bool {
        (now - self.issued_at).abs() <= FRESH
    }
}

impl Document for Rotation {}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::ErrorKind;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).expect("a time")
    }

    fn origin(name: &str) -> Origin {
        format!("https://{name}.example.com").parse().expect("an origin")
    }

    fn capability() -> Capability {
        Capability {
            issuer: origin("owner"),
            audience: origin("target"),
            owner: "018f3a2c-7c1d-7000-8000-00000000abcd".parse().expect("an id"),
            owner_name: "Acme".to_owned(),
            target: "globex".to_owned(),
            share: Uuid::from_u128(7),
            resource: ResourceRef::new("document", Uuid::from_u128(9)).expect("a resource"),
            perms: Perms::Read,
            not_before: at(0),
            expires_at: at(3600),
            nonce: Nonce::new([1; 16]),
        }
    }

    fn proof() -> Proof {
        Proof {
            issuer: origin("target"),
            audience: origin("owner"),
            method: "GET".to_owned(),
            path: "/x".to_owned(),
            capability: Nonce::new([1; 16]),
            issued_at: at(0),
            nonce: Nonce::new([2; 16]),
        }
    }

    fn keys() -> [InstallationKey; 3] {
        [1, 2, 3].map(|n| InstallationKey::new([n; 32]))
    }

    fn verify<D: Document>(text: &str, keys: &[PublicKey], audience: &Origin, now: DateTime<Utc>) -> Result<(D, PublicKey)> {
        Unverified::<D>::parse(text)?.verify(keys, audience, now)
    }

    #[test]
    fn only_a_pinned_key_for_this_audience_at_this_time_is_believed() {
        let [old, next, other] = keys();
        let (text, here) = (capability().sign(&next).expect("signed"), origin("target"));
        let pinned = [old.public(), next.public()];
        let (found, by) = verify::<Capability>(&text, &pinned, &here, at(5)).expect("it holds");
        assert_eq!((found, by), (capability(), next.public()));
        let words = verify::<Capability>("x", &pinned, &here, at(5)).expect_err("nothing").to_string();
        let refused = |text: &str, keys: &[PublicKey], audience: &Origin, now, why: &str| {
            let error = verify::<Capability>(text, keys, audience, now).expect_err(why);
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Unauthenticated, words.clone()), "{why}");
        };
        refused(&text, &[old.public(), other.public()], &here, at(5), "no pinned key");
        refused(&text, &[], &here, at(5), "no keys");
        refused(&text, &pinned, &origin("another"), at(5), "another audience");
        refused(&text, &pinned, &here, at(3600), "expired");
        refused(&text, &pinned, &here, at(-61), "not yet");
        assert!(
            verify::<Capability>(&text, &pinned, &here, at(-60)).is_ok() && verify::<Capability>(&text, &pinned, &here, at(3599)).is_ok()
        );
        for (changed, why) in [
            (Capability { perms: Perms::Write, ..capability() }, "perms that are not for others"),
            (Capability { expires_at: at(0) + MAX_LIFETIME + TimeDelta::seconds(1), ..capability() }, "too long"),
            (Capability { owner_name: "a\nb".to_owned(), ..capability() }, "a name with a line feed"),
            (Capability { target: "www.example.com".to_owned(), ..capability() }, "a target that is no name"),
        ] {
            refused(&changed.sign(&next).expect("signed"), &pinned, &here, at(5), why);
        }
    }

    #[test]
    fn no_byte_can_be_changed_and_nothing_has_two_spellings() {
        let [key, ..] = keys();
        let (text, here) = (capability().sign(&key).expect("signed"), origin("target"));
        let holds = |text: &str| verify::<Capability>(text, &[key.public()], &here, at(5)).is_ok();
        assert!(holds(&text), "the control");
        for n in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[n] = if bytes[n] == b'A' { b'B' } else { b'A' };
            assert!(!holds(std::str::from_utf8(&bytes).expect("ASCII")), "{n}");
        }
        let (payload, signature) = text.split_once('.').expect("two parts");
        let json = String::from_utf8(URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON");
        // Signed as well: only the spelling is at fault.
        for json in [
            json.replace("\"share\"", " \"share\""),
            json.replace('}', ",\"more\":1}"),
            json.replace("\"share\":", "\"share\":null,\"share\":"),
            json.replace("globex", "\\u0067lobex"),
            json.replace("1800000000", "1800000000.0"),
            "{}".to_owned(),
            "[]".to_owned(),
        ] {
            let signature = key.sign(&[b"tenancy federation v1 capability\n", json.as_bytes()].concat());
            let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(&json), URL_SAFE_NO_PAD.encode(signature));
            assert!(!holds(&text), "{json}");
        }
        for bad in
            ["", ".", payload, &format!("{text}="), &format!("{text}."), &format!(" {text}"), &format!(".{signature}"), &"A".repeat(9000)]
        {
            assert!(!holds(bad), "{bad}");
        }
    }

    #[test]
    fn a_signature_serves_for_one_kind_and_a_proof_for_a_minute() {
        let [key, next, _] = keys();
        let (text, pinned) = (proof().sign(&key).expect("signed"), [key.public()]);
        let (owner, holds) = (origin("owner"), |seconds| verify::<Proof>(&text, &pinned, &origin("owner"), at(seconds)).is_ok());
        assert!(holds(0) && holds(60) && holds(-60) && !holds(61) && !holds(-61));
        assert!(verify::<Proof>(&text, &pinned, &origin("target"), at(0)).is_err());
        // The same payload, signed as another kind.
        let (payload, _) = text.split_once('.').expect("two parts");
        let bytes = URL_SAFE_NO_PAD.decode(payload).expect("base64");
        let signature = key.sign(&[b"tenancy federation v1 rotation\n", &bytes[..]].concat());
        assert!(verify::<Proof>(&format!("{payload}.{}", URL_SAFE_NO_PAD.encode(signature)), &pinned, &owner, at(0)).is_err());

        let rotation = Rotation { issuer: origin("target"), next: next.public(), issued_at: at(0) };
        let text = rotation.sign(&key).expect("signed");
        assert_eq!(verify::<Rotation>(&text, &pinned, &owner, at(60)).expect("it holds").0.next, next.public());
        assert!(verify::<Rotation>(&text, &pinned, &owner, at(61)).is_err());
        assert!(verify::<Rotation>(&rotation.sign(&next).expect("signed"), &pinned, &owner, at(0)).is_err(), "by the next key itself");
    }
}
