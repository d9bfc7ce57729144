//! How often one client may ask for links. Whether the token is one is not looked at: guesses and good ones are refused alike.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tenancy_core::quota::Rate;

use crate::app::App;
use crate::problem;

const MINUTE: Duration = Duration::from_secs(60);
/// How many clients are remembered; whoever asked least recently is forgotten.
const MOST_CLIENTS: u64 = 50_000;

/// A bucket for each client's network: an address of IPv4, or a /64 of IPv6, which is one customer's.
#[derive(Debug)]
pub(crate) struct LinkRate {
    rate: Rate,
    buckets: Cache<IpAddr, Arc<AtomicU64>>,
    began: Instant,
}

impl LinkRate {
    /// So many requests a minute, which may come at once; nothing for 0.
    pub(crate) fn new(a_minute: u32) -> Option<Self> {
        let nanoseconds = u64::try_from(MINUTE.as_nanos()).unwrap_or(u64::MAX);
        // A bucket that was left alone for a minute is full, so it can go.
        let buckets = Cache::builder().max_capacity(MOST_CLIENTS).eviction_policy(EvictionPolicy::lru()).time_to_idle(MINUTE).build();
        let rate = Rate::new(a_minute.into(), nanoseconds, a_minute.into());
        (a_minute > 0).then(|| Self { rate, buckets, began: Instant::now() })
    }

    /// How long `client` has to wait, if it may not ask at `now`.
    fn take(&self, client: IpAddr, now: Instant) -> Result<(), Duration> {
        let since = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.buckets.get_with(network(client), Arc::default);
        self.rate.take(&bucket, 1, since).map_err(|wait| wait.map_or(MINUTE, Duration::from_nanos))
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Refuses whoever asks too often, by the address of the connection.
pub(crate) async fn limit(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match app.link_rate.as_ref().map_or(Ok(()), |rate| rate.take(peer.ip(), Instant::now())) {
        Ok(()) => next.run(request).await,
        Err(wait) => problem::too_often(wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_or_a_64() {
        let net = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!((net("192.0.2.1"), net("::ffff:192.0.2.1")), ("192.0.2.1".to_owned(), "192.0.2.1".to_owned()));
        assert_eq!((net("2001:db8:1:2:3:4:5:6"), net("2001:db8:1:2::")), ("2001:db8:1:2::".to_owned(), "2001:db8:1:2::".to_owned()));
        assert_ne!(net("2001:db8:1:3::"), net("2001:db8:1:2::"));
    }

    #[test]
    fn each_client_has_its_burst_and_then_the_rate() {
        assert!(LinkRate::new(0).is_none());
        let rate = LinkRate::new(3).expect("a rate");
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let now = rate.began + MINUTE;
        for _ in 0..3 {
            rate.take(one, now).expect("within the burst");
        }
        assert_eq!(rate.take(one, now), Err(Duration::from_secs(20)));
        rate.take(other, now).expect("another client's is its own");
        rate.take(one, now + Duration::from_secs(20)).expect("after the wait");
        assert!(rate.take(one, now + Duration::from_secs(20)).is_err());
    }

    #[test]
    fn no_more_clients_are_remembered_than_said() {
        let rate = LinkRate::new(3).expect("a rate");
        for n in 0..2 * u32::try_from(MOST_CLIENTS).expect("few") {
            let _ = rate.take(std::net::Ipv4Addr::from_bits(n).into(), rate.began);
        }
        rate.buckets.run_pending_tasks();
        assert!(rate.buckets.entry_count() <= MOST_CLIENTS, "{}", rate.buckets.entry_count());
    }
}
