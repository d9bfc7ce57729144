//! What must not compile: each file of `misuse/` is one mistake that would cross tenants, and the compiler's refusal.
//!
//! The compiler's words differ from version to version, so they are compared on the toolchain of `rust-version` only, which is the one
//! that CI runs. To accept new words: `TRYBUILD=overwrite cargo test -p tenancy-sqlx --test misuse`.

use std::process::Command;

#[test]
fn misuse_does_not_compile() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc --version").stdout;
    let version = String::from_utf8_lossy(&version);
    let pinned = env!("CARGO_PKG_RUST_VERSION");
    if !version.starts_with(&format!("rustc {pinned}.")) {
        eprintln!("skipped: the expected messages are those of Rust {pinned}, and this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
