//! What Pods send to the world: connections that the router namespace redirected here, dialled anew from the host's
//! namespace.
//!
//! **Invariant:** a Pod reaches nothing through here that only the host itself may reach: no loopback, and none of our
//! own ranges.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use network::Cidr;
use tokio::net::TcpStream;

use crate::backend::{Backend, Flight};
use crate::buffer::Buffer;
use crate::io::reset;
use crate::worker::Worker;
use crate::{metrics, relay};

/// The rules of what may leave.
#[derive(Debug)]
pub(crate) struct Egress {
    services: Cidr,
    pods: Cidr,
    metrics: Arc<metrics::Backend>,
}

impl Egress {
    pub(crate) fn new(services: Cidr, pods: Cidr) -> Arc<Self> {
        let labels = vec![("service", "egress".to_owned()), ("backend", "world".to_owned())];
        Arc::new(Self { services, pods, metrics: metrics::Backend::new(labels) })
    }

    fn allows(&self, to: Ipv4Addr) -> bool {
        let of_the_host = to.is_loopback() || to.octets()[0] == 0;
        let of_nobody = to.is_multicast() || to.is_broadcast();
        !of_the_host && !of_nobody && !self.services.contains(to) && !self.pods.contains(to)
    }
}

pub(crate) async fn serve(worker: &Worker, client: TcpStream, egress: &Egress) {
    let original = socket2::SockRef::from(&client).original_dst_v4();
    let to: Option<SocketAddrV4> = original.ok().and_then(|address| address.as_socket_ipv4());
    // A connection to the egress port itself has no other destination.
    let to = to.filter(|to| egress.allows(*to.ip()));
    let Some(to) = to else {
        metrics::count(&metrics::OWN.egress_refused);
        return reset(client);
    };
    let to = SocketAddr::new(IpAddr::V4(*to.ip()), to.port());
    match worker.shared.dial(to, false).await {
        Ok(upstream) => {
            egress.metrics.connected();
            let backend = Backend::new(to, false, Arc::default(), Arc::clone(&egress.metrics));
            let Some(flight) = Flight::begin(&backend) else { return };
            relay::relayed(worker, flight, client, upstream, Buffer::default(), Buffer::default()).await;
        }
        Err(error) => {
            tracing::debug!(%to, %error, "connect for a pod");
            egress.metrics.refused();
            reset(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_reach_neither_the_host_s_loopback_nor_our_ranges() {
        let egress = Egress::new("10.96.0.0/16".parse().unwrap(), "10.244.0.0/16".parse().unwrap());
        for refused in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "10.96.0.1",
            "10.244.0.1",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!egress.allows(refused.parse().unwrap()), "{refused}");
        }
        for allowed in ["192.0.2.1", "10.0.0.1", "169.254.169.254"] {
            assert!(egress.allows(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
