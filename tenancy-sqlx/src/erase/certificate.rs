//! What an erasure proves with: a document that whoever has the key can verify.

use std::fmt;

use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tenancy_core::{Error, Result};

/// Signs certificates, with HMAC-SHA-256: keep it with the certificates' readers, and apart from the database.
#[derive(Clone)]
pub struct CertificateKey([u8; 32]);

impl CertificateKey {
    /// The key with these 32 random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn mac(&self, certificate: &Value) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"tenancy erasure certificate\n"); // for nothing else that the same key may sign
        mac.update(canonical(certificate).as_bytes());
        mac
    }

    pub(super) fn sign(&self, certificate: &Value) -> Value {
        let digits = self.mac(certificate).finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        json!({ "certificate": certificate, "algorithm": "HMAC-SHA-256", "signature": digits })
    }

    /// What `signed` certifies, if this key signed it and nobody changed it since.
    ///
    /// # Errors
    /// [`Invalid`](tenancy_core::ErrorKind::Invalid).
    pub fn verify<'a>(&self, signed: &'a Value) -> Result<&'a Value> {
        let refuse = || Error::invalid("certificate", "was not signed with this key, or was changed");
        let (certificate, algorithm) = (&signed["certificate"], signed["algorithm"].as_str());
        let digits = signed["signature"].as_str().filter(|digits| digits.len() == 64 && digits.is_ascii()).ok_or_else(refuse)?;
        let pairs = (0..32).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16));
        let signature: Vec<u8> = pairs.collect::<Result<_, _>>().map_err(|_| refuse())?;
        if algorithm != Some("HMAC-SHA-256") || !certificate.is_object() {
            return Err(refuse());
        }
        self.mac(certificate).verify_slice(&signature).map_err(|_| refuse())?;
        Ok(certificate)
    }
}

impl fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateKey(..)")
    }
}

/// JSON with the members in order and no white space: the same text wherever the document has been.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            let members: Vec<String> = members.into_iter().map(|(name, of)| format!("{}:{}", json!(name), canonical(of))).collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_holds_for_its_key_alone_and_as_it_is() {
        let key = CertificateKey::new([7; 32]);
        let signed = key.sign(&json!({ "tenant": "t", "tables": { "b": 1, "a": [2, null] } }));
        let read: Value = serde_json::from_str(&signed.to_string()).expect("JSON");
        assert_eq!(key.verify(&read).expect("ours")["tenant"], "t");
        assert!(CertificateKey::new([8; 32]).verify(&read).is_err());
        for (pointer, other) in [("/certificate/tables/b", json!(2)), ("/signature", json!("00")), ("/algorithm", json!("none"))] {
            let mut forged = read.clone();
            *forged.pointer_mut(pointer).expect("a member") = other;
            assert!(key.verify(&forged).is_err(), "{pointer}");
        }
        assert_eq!(format!("{key:?}"), "CertificateKey(..)");
    }
}
