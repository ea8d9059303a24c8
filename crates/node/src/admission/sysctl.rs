//! Kernel parameters of a Pod: kubelet's safe list, each of which belongs to one of the Pod's namespaces.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;

/// The namespace that a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Network,
}

/// What kubelet 1.36 allows without being told (`pkg/kubelet/sysctl/safe_sysctls.go`), sorted.
const SAFE: &[(&str, Namespace)] = &[
    ("kernel.shm_rmid_forced", Namespace::Ipc),
    ("net.ipv4.ip_local_port_range", Namespace::Network),
    ("net.ipv4.ip_local_reserved_ports", Namespace::Network),
    ("net.ipv4.ip_unprivileged_port_start", Namespace::Network),
    ("net.ipv4.ping_group_range", Namespace::Network),
    ("net.ipv4.tcp_fin_timeout", Namespace::Network),
    ("net.ipv4.tcp_keepalive_intvl", Namespace::Network),
    ("net.ipv4.tcp_keepalive_probes", Namespace::Network),
    ("net.ipv4.tcp_keepalive_time", Namespace::Network),
    ("net.ipv4.tcp_rmem", Namespace::Network),
    ("net.ipv4.tcp_syncookies", Namespace::Network),
    ("net.ipv4.tcp_wmem", Namespace::Network),
];

/// `net/ipv4/x` and `net.ipv4.x` are one parameter.
fn name(text: &str) -> String {
    text.replace('/', ".")
}

/// The parameters by name.
pub(super) fn of(spec: &PodSpec) -> BTreeMap<String, String> {
    let list = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    list.map(|sysctl| (name(&sysctl.name), sysctl.value.clone())).collect()
}

/// Whether the Pod may set what it sets; else why not, in kubelet's words.
pub(super) fn check(spec: &PodSpec) -> Result<(), String> {
    for name in of(spec).into_keys() {
        let forbidden = |why: &str| Err(format!("forbidden sysctl: {name:?} {why}"));
        let namespace = match SAFE.binary_search_by(|row| row.0.cmp(&name)) {
            Ok(row) => SAFE[row].1,
            Err(_) => return forbidden("not allowlisted"),
        };
        match namespace {
            Namespace::Network if spec.host_network == Some(true) => {
                return forbidden("not allowed with host net enabled");
            }
            Namespace::Ipc if spec.host_ipc == Some(true) => {
                return forbidden("not allowed with host ipc enabled");
            }
            Namespace::Network | Namespace::Ipc => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(names: &[&str], host: bool) -> PodSpec {
        let sysctls: Vec<_> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        serde_json::from_value(json!({"containers": [], "hostNetwork": host, "hostIPC": host,
            "securityContext": {"sysctls": sysctls}}))
        .unwrap()
    }

    #[test]
    fn only_what_belongs_to_the_pod_may_be_set() {
        assert!(SAFE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let safe: Vec<_> = SAFE.iter().map(|row| row.0).collect();
        assert_eq!(check(&spec(&safe, false)), Ok(()));
        assert_eq!(check(&spec(&["net/ipv4/tcp_syncookies"], false)), Ok(()));
        for name in ["kernel.core_pattern", "net.ipv4.ip_forward", "../kernel/x", "vm.swappiness", ""] {
            assert!(check(&spec(&[name], false)).unwrap_err().contains("not allowlisted"), "{name}");
        }
        for name in safe {
            assert!(check(&spec(&[name], true)).unwrap_err().contains("not allowed with host"), "{name}");
        }
    }
}
