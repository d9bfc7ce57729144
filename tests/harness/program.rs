//! The server's command line, run as a process.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use crate::actors::OPERATOR_TOKEN;
use crate::app::Folder;

/// The program, as freshly built as the tests. Its features are those of the workspace's default members, as in `cargo test`.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let tests = std::env::current_exe().expect("our own path");
    let profile = tests.ancestors().nth(2).expect("target/debug/deps/…");
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells the tests of their own package makes build scripts run again, and all that depends on them.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
        cargo.env_remove(name);
    }
    let built = cargo
        .args(["build", "--quiet", "--locked", "--bin", "tenancy-server", "--target-dir"])
        .arg(profile.parent().expect("target"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile.join("tenancy-server")
});

/// The program in an environment that sets nothing of it.
pub fn command(folder: &Folder, args: &[&str]) -> Command {
    let mut command = Command::new(&*PROGRAM);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TENANCY_") || name == "DATABASE_URL" || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.args(args).env("TENANCY_DATA_DIR", folder.0.join("data")).env("TENANCY_OPERATOR_TOKEN", OPERATOR_TOKEN);
    command.current_dir(&folder.0).stdin(Stdio::null());
    command
}

/// Runs it to its end: what came of it, and what it printed on stdout and stderr.
pub fn run(mut command: Command) -> (Output, String, String) {
    let output = command.output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}
