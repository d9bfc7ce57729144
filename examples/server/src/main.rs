//! The binary: see [`tenancy_server`].

#[tokio::main]
async fn main() -> std::process::ExitCode {
    tenancy_server::cli::run().await
}
