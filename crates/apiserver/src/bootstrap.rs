//! The objects that every cluster has from its first moment on.

use std::net::{Ipv4Addr, SocketAddr};

use resources::apply;
use resources::kind::Kind;
use resources::status::Status;
use serde_json::{Value, json};

use crate::path::Place;
use crate::query::WriteOptions;
use crate::update::{self, Change};
use crate::{Api, Error, create, object};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease", "gantry-system"];
const MANAGER: &str = "gantry";

/// Makes what is missing.
pub(crate) async fn run(api: &Api, advertise: Option<SocketAddr>) -> Result<(), Error> {
    // Together, so that the store commits them together. What people do to a Namespace stays done.
    let missing =
        NAMESPACES.iter().filter(|name| api.store.get(&format!("/core/namespaces/{name}")).is_none());
    let made =
        missing.map(|name| ensure(api, "", "namespaces", "", name, json!({ "metadata": { "name": name } })));
    futures::future::try_join_all(made).await?;
    let (network, _) = api.service_cidr;
    let address = Ipv4Addr::from(u32::from(network) + 1);
    let port = advertise.map_or(6443, |address| address.port());
    let service = json!({
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "clusterIP": address.to_string(),
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
            "type": "ClusterIP",
        },
    });
    let service = ensure(api, "", "services", "default", "kubernetes", service);
    let Some(advertise) = advertise else { return service.await };
    let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let slice = json!({
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "addressType": family,
        "endpoints": [{ "addresses": [advertise.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": advertise.port(), "protocol": "TCP" }],
    });
    let slice = ensure(api, "discovery.k8s.io", "endpointslices", "default", "kubernetes", slice);
    futures::future::try_join(service, slice).await.map(drop)
}

/// Creates an object, or brings it to what it should be.
async fn ensure(
    api: &Api,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    wanted: Value,
) -> Result<(), Error> {
    // A kind that is not in the table is not served, and nobody misses its objects.
    let Some(kind) = resources::kind_of_resource(group, "v1", plural) else { return Ok(()) };
    let place = Place {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: None,
        watch: false,
    };
    write(api, kind, &place, wanted)
        .await
        .map_err(|source| Error::Bootstrap { object: format!("{plural}/{name}"), source: Box::new(source) })
}

async fn write(api: &Api, kind: &'static Kind, place: &Place, wanted: Value) -> Result<(), Status> {
    let options = WriteOptions { manager: MANAGER.into(), force: true, ..WriteOptions::default() };
    let mut config = wanted;
    object::name_type(kind, &mut config);
    let mut transform = |live: Option<&Value>, _: &mut Vec<String>| {
        let request = apply::Request { kind, manager: MANAGER, subresource: "", now: api.now() };
        let mut new = apply::apply(live, &config, true, &request).map_err(|error| error.status())?;
        create::ensure_metadata(&mut new);
        (kind.default)(&mut new);
        Ok(new)
    };
    let change = Change { place, options: &options, creates: true, uid_is_precondition: false };
    update::run(api, &change, &mut Vec::new(), &mut transform).await?;
    Ok(())
}
