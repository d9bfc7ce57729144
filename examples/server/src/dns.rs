//! Questions to the DNS: the TXT records that prove a domain, without a cache in between.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::{Resolver, TokioResolver};
use tenancy_core::{Error, ErrorKind, Result, TxtResolver};

use crate::config::{Config, text};

/// How long a name server may take, and how often it is asked.
const TIMEOUT: Duration = Duration::from_secs(2);
const TRIES: usize = 2;
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(8);

/// Asks the name server of `TENANCY_DNS`, or those of the system.
pub(crate) struct Dns(Option<TokioResolver>);

impl Dns {
    pub(crate) fn from_config(config: &Config) -> Result<Self> {
        let wrong = |why: &str| Error::new(ErrorKind::Misconfigured, format!("TENANCY_DNS: {why}"));
        let mut builder = match text(&config.dns) {
            Some(server) => {
                let address: SocketAddr = server.parse().map_err(|_| wrong("give the address of a name server, such as 127.0.0.53:53"))?;
                let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                (udp.port, tcp.port) = (address.port(), address.port());
                let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
                Resolver::builder_with_config(ResolverConfig::from_name_servers(vec![server]), TokioRuntimeProvider::default())
            }
            None => match Resolver::builder_tokio() {
                Ok(builder) => builder,
                // Whoever uses no domains needs none.
                Err(_) => return Ok(Self(None)),
            },
        };
        let options = builder.options_mut();
        (options.timeout, options.attempts, options.cache_size) = (TIMEOUT, TRIES, 0);
        options.use_hosts_file = ResolveHosts::Never;
        builder.build().map(Some).map(Self).map_err(|source| wrong("name servers can't be asked").with_source(source))
    }
}

#[async_trait]
impl TxtResolver for Dns {
    async fn txt(&self, name: &str) -> Result<Vec<String>> {
        let away = |why: &'static str| Error::new(ErrorKind::Unavailable, why);
        let resolver = self.0.as_ref().ok_or_else(|| away("the system names no name server"))?;
        // With the last dot, nothing is searched for below the system's own domains.
        let looked = tokio::time::timeout(LIMIT, resolver.txt_lookup(format!("{name}."))).await;
        match looked {
            Err(_) => Err(away("the name servers did not answer in time")),
            Ok(Err(error)) if error.is_no_records_found() => Ok(Vec::new()),
            Ok(Err(error)) => Err(away("the name servers could not say").with_source(error)),
            Ok(Ok(found)) => {
                let texts = found.answers().iter().filter_map(|record| match &record.data {
                    RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
                    _ => None,
                });
                Ok(texts.collect())
            }
        }
    }
}
