//! A container's environment: values, references, `$(VAR)` expansion and Service links.
//!
//! Order is kubelet's: Service links, then `envFrom` in order, then `env` in order; later ones win. `$(VAR)` sees what
//! came before it, `$$(VAR)` is a literal `$(VAR)`, and an unknown reference stays as it was written.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};

use crate::fields;

/// Why an environment could not be made; the container waits as `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The object that holds the value is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that the downward API does not offer.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that the downward API does not offer.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// Bytes that no environment variable can hold.
    #[error("key {key} in Secret {name} is not valid UTF-8 and cannot be an environment variable")]
    NotText {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
}

/// What an environment is made of besides the Pod itself.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// ConfigMaps of the Pod's namespace that it names, by name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets likewise.
    pub secrets: BTreeMap<String, Secret>,
    /// Services of the Pod's namespace (and `default/kubernetes`) for the links.
    pub services: Vec<Service>,
    /// What only the node knows.
    pub node: fields::Node,
}

/// The environment of `container`, in order, each name once.
pub fn resolve(pod: &Pod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, Error> {
    let mut env = Env::default();
    for (name, value) in service_links(pod, &sources.services) {
        env.set(name, value);
    }
    env_from(container, sources, &mut env)?;
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| env.get(name))),
            (_, Some(from)) => value_from(pod, container, from, sources)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.entries)
}

#[derive(Default)]
struct Env {
    entries: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: String, value: String) {
        match self.places.get(&name) {
            Some(place) => self.entries[*place].1 = value,
            None => {
                self.places.insert(name.clone(), self.entries.len());
                self.entries.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.entries[*place].1.as_str())
    }
}

fn env_from(container: &Container, sources: &Sources, env: &mut Env) -> Result<(), Error> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NotFound { kind: "configmap", name: reference.name.clone() }),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let text = String::from_utf8(value.0.clone())
                            .map_err(|_| Error::NotText { name: reference.name.clone(), key: key.clone() })?;
                        env.set(format!("{prefix}{key}"), text);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::NotFound { kind: "secret", name: reference.name.clone() }),
            }
        }
    }
    Ok(())
}

fn value_from(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, Error> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &from.field_ref {
        return fields::pod(pod, &field.field_path, &sources.node)
            .map(Some)
            .ok_or_else(|| Error::Field(field.field_path.clone()));
    }
    if let Some(resource) = &from.resource_field_ref {
        return fields::resource(pod, container, resource, &sources.node)
            .map(Some)
            .ok_or_else(|| Error::Resource(resource.resource.clone()));
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = sources.config_maps.get(&reference.name) else {
            return match optional {
                true => Ok(None),
                false => Err(Error::NotFound { kind: "configmap", name: reference.name.clone() }),
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(Error::KeyNotFound {
                kind: "ConfigMap",
                namespace: namespace(),
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = sources.secrets.get(&reference.name) else {
            return match optional {
                true => Ok(None),
                false => Err(Error::NotFound { kind: "secret", name: reference.name.clone() }),
            };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => String::from_utf8(value.0.clone())
                .map(Some)
                .map_err(|_| Error::NotText { name: reference.name.clone(), key: reference.key.clone() }),
            None if optional => Ok(None),
            None => Err(Error::KeyNotFound {
                kind: "Secret",
                namespace: namespace(),
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    Ok(Some(String::new()))
}

/// Replaces `$(NAME)` by what `lookup` gives; see the module's rules.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(')
            && let Some(end) = after.find(')')
        {
            let name = &after[..end];
            match lookup(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = &after[end + 1..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// `REDIS_SERVICE_HOST` and its kin, for Services that had a ClusterIP when the container started.
fn service_links(pod: &Pod, services: &[Service]) -> Vec<(String, String)> {
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let kubernetes = of == "default" && name == "kubernetes";
        if kubernetes {
            chosen.entry(name).or_insert(service);
        } else if links && of == namespace {
            chosen.insert(name, service);
        }
    }
    chosen.values().flat_map(|service| links_of(service)).collect()
}

fn links_of(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return Vec::new();
    };
    let Some(ports) = spec.ports.as_deref().filter(|ports| !ports.is_empty()) else { return Vec::new() };
    let name = variable_name(service.metadata.name.as_deref().unwrap_or_default());
    let mut links = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_owned()),
        (format!("{name}_SERVICE_PORT"), ports[0].port.to_string()),
    ];
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            links.push((format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            links.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        links.push((prefix.clone(), url));
        links.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        links.push((format!("{prefix}_PORT"), port.port.to_string()));
        links.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    links
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(container: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "shop", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "n", "containers": [container]},
            "status": {"podIP": "10.1.0.3"}
        }))
        .unwrap()
    }

    fn env_of(container: Value, sources: &Sources) -> Result<Vec<(String, String)>, Error> {
        let pod = pod(container);
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        resolve(&pod, &container, sources)
    }

    #[test]
    fn expansion_follows_kubelets_rules() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "EMPTY" => Some(""),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(EMPTY)", ""),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: $", "cost: $"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn later_ones_win_and_see_the_earlier_ones() {
        let sources = Sources {
            config_maps: [(
                "m".to_owned(),
                serde_json::from_value(json!({"data": {"B": "from-map", "K": "v"}})).unwrap(),
            )]
            .into(),
            ..Sources::default()
        };
        let env = env_of(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
                   "env": [{"name": "A", "value": "a"}, {"name": "B", "value": "$(A)$(P_B)"},
                           {"name": "A", "value": "again"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                           {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "K"}}},
                           {"name": "NO", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x", "optional": true}}}]}),
            &sources,
        )
        .unwrap();
        let text: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(text, ["P_B=from-map", "P_K=v", "A=again", "B=afrom-map", "IP=10.1.0.3", "K=v"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = env_of(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            &Sources::default(),
        );
        assert_eq!(missing.unwrap_err().to_string(), "secret \"s\" not found");
        let sources =
            Sources { config_maps: [("m".to_owned(), ConfigMap::default())].into(), ..Sources::default() };
        let missing = env_of(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}),
            &sources,
        );
        assert_eq!(missing.unwrap_err().to_string(), "couldn't find key k in ConfigMap shop/m");
    }

    #[test]
    fn services_of_the_namespace_are_linked() {
        let service = |namespace: &str, name: &str, ip: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))
            .unwrap()
        };
        let services = vec![
            service("shop", "my-db", "10.0.0.5"),
            service("shop", "headless", "None"),
            service("other", "far", "10.0.0.6"),
            service("default", "kubernetes", "10.0.0.1"),
        ];
        let sources = Sources { services, ..Sources::default() };
        let env = env_of(json!({"name": "c"}), &sources).unwrap();
        let names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"KUBERNETES_SERVICE_HOST") && names.contains(&"MY_DB_PORT_80_TCP_ADDR"));
        assert!(!names.iter().any(|name| name.starts_with("FAR") || name.starts_with("HEADLESS")));
        assert!(env.contains(&("MY_DB_PORT".to_owned(), "tcp://10.0.0.5:80".to_owned())));
    }
}
