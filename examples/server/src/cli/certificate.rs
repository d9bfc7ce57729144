//! `tenancy-server certificate verify`: whether an erasure was certified by this installation.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;
use tenancy_core::{Error, Result};

use super::say;
use crate::config::Config;
use crate::credentials::certificate_key;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Verify a certificate of an erasure, and print what it certifies
    Verify {
        /// The file: an operation, or the `result` of one
        file: PathBuf,
    },
}

pub(super) fn run(config: &Config, verb: Verb) -> Result<ExitCode> {
    let Verb::Verify { file } = verb;
    let text = std::fs::read(&file).map_err(|e| Error::invalid("file", "can't be read").with_source(e))?;
    let document: Value = serde_json::from_slice(&text).map_err(|e| Error::invalid("file", "is not JSON").with_source(e))?;
    let signed = if document["result"].is_object() { &document["result"] } else { &document };
    say(certificate_key(config)?.verify(signed)?);
    Ok(ExitCode::SUCCESS)
}
