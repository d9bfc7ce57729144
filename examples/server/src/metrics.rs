//! What the process measures, kept for whoever scrapes it.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// One for the process, as the `metrics` facade has it.
static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// A series that nothing was added to for so long is forgotten: a tenant that was once among the busiest is not named for ever.
const IDLE: Duration = Duration::from_secs(3600);

/// Begins to keep what is measured. Where something else of the process keeps it already, it goes there.
pub(crate) fn install() {
    RECORDER.get_or_init(|| {
        let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::ALL, Some(IDLE));
        builder.install_recorder().inspect_err(|error| tracing::warn!(%error, "metrics are kept by another recorder")).ok()
    });
}

/// Everything, in Prometheus' text format; `None` if it is kept elsewhere.
pub(crate) fn render() -> Option<String> {
    let recorder = RECORDER.get()?.as_ref()?;
    recorder.run_upkeep();
    Some(recorder.render())
}
