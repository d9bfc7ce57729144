//! Signed webhooks, as [Standard Webhooks](https://www.standardwebhooks.com) has them: what a sender signs with, and how a receiver
//! verifies.
//!
//! ```
//! # fn main() -> tenancy_core::Result<()> {
//! use chrono::DateTime;
//! use tenancy_core::webhook::{Secret, verify};
//!
//! let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
//! // The headers `webhook-id`, `webhook-timestamp` and `webhook-signature`, and the body as it came.
//! let (id, timestamp, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
//! let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
//! let now = DateTime::from_timestamp(1_614_265_335, 0).expect("a time");
//! verify(&[secret], id, timestamp, signature, body, now)?;
//! # Ok(()) }
//! ```

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::{Error, ErrorKind, Result};

/// How far the time of a message may be from the receiver's: what is older was perhaps seen before.
pub const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// What an endpoint can be told of: the topics of the outbox that have no secret in them.
pub const TOPICS: [&str; 11] = [
    "domain.lost",
    "domain.verified",
    "member.added",
    "member.removed",
    "member.updated",
    "quota.resolved",
    "quota.threshold",
    "share.accepted",
    "share.declined",
    "share.ended",
    "share.offered",
];

/// What messages are signed with: 24 to 64 bytes. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random.to_vec())
    }

    /// `whsec_` and the bytes in base64, to give to the receiver.
    pub fn expose(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.0))
    }

    /// The signature of one message at one time, as one part of the header `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        format!("v1,{}", STANDARD.encode(self.mac(id, &timestamp.to_string(), body).finalize().into_bytes()))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }
}

impl FromStr for Secret {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("secret", "must be whsec_ and 24 to 64 bytes in base64");
        let bytes = STANDARD.decode(text.strip_prefix("whsec_").ok_or_else(wrong)?).map_err(|_| wrong())?;
        if (24..=64).contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(wrong()) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Verifies a message: `id`, `timestamp` and `signatures` are its headers, `body` its bytes as they came. One signature by one of the
/// `secrets` is enough; signatures of other versions than `v1` are passed over. Comparing takes the same time whatever differs.
///
/// A message is believed for [`TOLERANCE`]. Whoever minds repetitions within it keeps the ids for as long.
///
/// # Errors
/// [`Unauthenticated`](ErrorKind::Unauthenticated), in the same words whatever was wrong.
pub fn verify(secrets: &[Secret], id: &str, timestamp: &str, signatures: &str, body: &[u8], now: DateTime<Utc>) -> Result<()> {
    let refused = || Error::new(ErrorKind::Unauthenticated, "the webhook is not signed as it must be");
    let at = timestamp.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)).ok_or_else(refused)?;
    if (now - at).abs() > TOLERANCE || id.is_empty() || id.contains('.') {
        return Err(refused());
    }
    let signed = signatures.split(' ').filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok());
    let mut valid = false;
    for signature in signed {
        for secret in secrets {
            valid |= secret.mac(id, timestamp, body).verify_slice(&signature).is_ok();
        }
    }
    if valid { Ok(()) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of the specification's own libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(AT + seconds, 0).expect("a time")
    }

    #[test]
    fn the_signature_is_that_of_the_specification() {
        let secret: Secret = SECRET.parse().expect("a secret");
        assert_eq!(secret.sign(ID, AT, BODY), SIGNATURE);
        assert_eq!((secret.expose().as_str(), format!("{secret:?}").as_str()), (SECRET, "Secret"));
        for bad in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_AAAA", "whsec_!", &format!("whsec_{}", "A".repeat(88))] {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
    }

    #[test]
    fn any_change_and_any_replay_is_refused() {
        let (secret, other): (Secret, Secret) = (SECRET.parse().expect("a secret"), Secret::new([7; 32]));
        let own = [other.clone(), secret];
        let stamp = AT.to_string();
        let is = |secrets: &[Secret], id: &str, timestamp: &str, signatures: &str, body: &[u8], now| {
            verify(secrets, id, timestamp, signatures, body, now).is_ok()
        };
        let both = format!("v1a,AAAA {} {SIGNATURE}", other.sign(ID, AT + 1, BODY));
        for (signatures, seconds) in [(SIGNATURE, 0), (SIGNATURE, 300), (SIGNATURE, -300), (&both, 0)] {
            assert!(is(&own, ID, &stamp, signatures, BODY, at(seconds)), "{signatures} {seconds}");
        }
        assert!(!is(&own, ID, &stamp, SIGNATURE, BODY, at(301)) && !is(&own, ID, &stamp, SIGNATURE, BODY, at(-301)), "replayed");
        assert!(!is(&own, ID, &(AT + 1).to_string(), SIGNATURE, BODY, at(0)) && !is(&own, "msg_x", &stamp, SIGNATURE, BODY, at(0)));
        assert!(
            !is(&own, ID, &stamp, SIGNATURE, b"{}", at(0))
                && !is(&own[..1], ID, &stamp, SIGNATURE, BODY, at(0))
                && !is(&[], ID, &stamp, SIGNATURE, BODY, at(0))
        );
        for signatures in ["", "v1,", "v1", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", &SIGNATURE[3..], "v1,g0hM9SsE"] {
            assert!(!is(&own, ID, &stamp, signatures, BODY, at(0)), "{signatures}");
        }
        for stamp in ["", "x", "1614265330.5", "99999999999999999999", "-1"] {
            assert!(!is(&own, ID, stamp, SIGNATURE, BODY, at(0)), "{stamp}");
        }
    }
}
