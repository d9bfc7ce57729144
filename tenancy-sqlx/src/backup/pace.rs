//! How fast a backup reads, so that it hurts nobody.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use tenancy_core::Result;

/// Bytes per second on the average, or no bound.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// Counts what was read.
    bytes: Arc<AtomicU64>,
    /// When all that was read so far should have been read.
    due: Mutex<Option<Instant>>,
}

/// What may be read at once after a pause: so much time's worth.
const BURST: Duration = Duration::from_millis(50);

impl Pace {
    pub(super) fn new(rate: Option<std::num::NonZeroU64>, bytes: Arc<AtomicU64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        Self { rate: rate.map(|rate| rate.get() as f64), bytes, due: Mutex::new(None) }
    }

    /// Waits until so many bytes more may have been read.
    pub(super) async fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(wait) = self.wait(bytes, Instant::now()) else { return };
        tokio::time::sleep(wait).await;
    }

    fn wait(&self, bytes: usize, now: Instant) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "a chunk is small")]
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate?);
        let mut last = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.map_or(now, |due| due.max(now.checked_sub(BURST).unwrap_or(now))) + takes;
        *last = Some(due);
        due.checked_duration_since(now).filter(|wait| *wait > Duration::from_millis(1))
    }

    /// The same content, no faster than this.
    pub(super) fn slowed<'a>(&'a self, content: BoxStream<'a, Result<Bytes>>) -> BoxStream<'a, Result<Bytes>> {
        stream::try_unfold((self, content), |(pace, mut content)| async move {
            match content.next().await.transpose()? {
                Some(bytes) => {
                    pace.read(bytes.len()).await;
                    Ok(Some((bytes, (pace, content))))
                }
                None => Ok(None),
            }
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_holds_and_a_pause_saves_up_little() {
        let pace = Pace::new(std::num::NonZeroU64::new(1_000), Arc::default());
        let start = Instant::now();
        assert_eq!(pace.wait(100, start), Some(Duration::from_millis(100)));
        assert_eq!(pace.wait(100, start), Some(Duration::from_millis(200)), "what is owed adds up");
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.wait(50, later), None, "a pause lets some through at once");
        assert_eq!(pace.wait(1_000, later), Some(Duration::from_millis(1_000)));
        assert_eq!(Pace::new(None, Arc::default()).wait(usize::MAX, start), None);
    }
}
