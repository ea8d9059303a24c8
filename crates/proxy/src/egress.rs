//! What Pods send to the world: connections that the router namespace redirected here, dialled anew from the host's
//! namespace as far as [`crate::destination`] allows it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::net::TcpStream;

use crate::backend::{Backend, Flight};
use crate::destination::{Allowance, Refusal};
use crate::io::reset;
use crate::worker::{Held, Worker};
use crate::{metrics, relay};

/// What Pods are allowed by their annotations, by the Pod's address: who writes and who reads share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowances(Arc<RwLock<HashMap<Ipv4Addr, (String, Allowance)>>>);

impl Allowances {
    /// The Pod of that UID has the address and the allowance.
    pub(crate) fn set(&self, address: Ipv4Addr, uid: &str, allowance: &Allowance) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if allowance.is_empty() {
            // Whoever had the address before has it no more.
            all.remove(&address);
        } else {
            all.insert(address, (uid.to_owned(), allowance.clone()));
        }
    }

    /// The Pod of that UID is gone.
    pub(crate) fn remove(&self, uid: &str) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (of, _)| of != uid);
    }

    fn of(&self, address: IpAddr) -> Allowance {
        let IpAddr::V4(address) = address else { return Allowance::default() };
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&address).map(|(_, allowance)| allowance.clone()).unwrap_or_default()
    }
}

/// What egress connections share.
#[derive(Debug)]
pub(crate) struct Egress {
    allowances: Allowances,
    metrics: Arc<metrics::Backend>,
}

impl Egress {
    pub(crate) fn new(allowances: Allowances) -> Arc<Self> {
        let labels = vec![("service", "egress".to_owned()), ("backend", "world".to_owned())];
        Arc::new(Self { allowances, metrics: metrics::Backend::new(labels) })
    }
}

pub(crate) async fn serve(worker: &Worker, client: TcpStream, peer: IpAddr, egress: &Egress, held: &Held) {
    let original = socket2::SockRef::from(&client).original_dst_v4();
    let to: Option<SocketAddrV4> = original.ok().and_then(|address| address.as_socket_ipv4());
    let Some(to) = to else {
        Refusal::NoDestination.refuse();
        return reset(client);
    };
    let to = SocketAddr::V4(to);
    match worker.shared.dial(to, false, &egress.allowances.of(peer)).await {
        Ok(upstream) => {
            egress.metrics.connected();
            let backend =
                Backend::new(to, false, Allowance::default(), Arc::default(), Arc::clone(&egress.metrics));
            let Some(flight) = Flight::begin(&backend) else { return };
            relay::begin(worker, held, flight, client, upstream).await;
        }
        Err(error) => {
            tracing::debug!(%to, %peer, %error, "connect for a pod");
            egress.metrics.refused();
            reset(client);
        }
    }
}
