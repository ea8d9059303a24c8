//! The Pod's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`. Pure, but for [`write`].

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::spec::hostname;

/// The domain of Services.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Writes the three files to `<pod_dir>/etc`. Blocks.
pub fn write(pod: &Pod, pod_dir: &Path, ip: IpAddr, dns: IpAddr) -> io::Result<()> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let dir = pod_dir.join("etc");
    fs::create_dir_all(&dir)?;
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let files = [
        ("hosts", hosts(pod, spec, ip)),
        ("hostname", format!("{}\n", hostname(pod, spec))),
        ("resolv.conf", resolv_conf(pod, spec, dns, &host)),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        // A container that runs has this file mounted: what is right is left alone, inode included.
        if !holds(&path, &text) {
            fs::write(&path, text)?;
            // Whoever runs in the container reads it; above it only root passes.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

/// Reads no more than is asked for: the container may have made the file as long as it likes.
fn holds(path: &Path, text: &str) -> bool {
    let mut found = Vec::new();
    let most = text.len() as u64 + 1;
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut found));
    read.is_ok() && found == text.as_bytes()
}

fn hosts(pod: &Pod, spec: &PodSpec, ip: IpAddr) -> String {
    let mut text = String::from(
        "# Written by gantry.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod, spec);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let names = match spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => format!("{host}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}\t{host}"),
        None => host,
    };
    // Writing into a String cannot fail.
    let _ = writeln!(text, "{ip}\t{names}");
    for alias in spec.host_aliases.iter().flatten() {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
    }
    text
}

fn resolv_conf(pod: &Pod, spec: &PodSpec, dns: IpAddr, host: &str) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut servers = Vec::new();
    let mut search: Vec<String> = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let (host_servers, host_search, host_options) = parse(host);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let on_host = spec.host_network == Some(true);
    match policy {
        "None" => {}
        "ClusterFirstWithHostNet" | "ClusterFirst" if policy != "ClusterFirst" || !on_host => {
            servers.push(dns.to_string());
            search.extend([
                format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ]);
            search.extend(host_search);
            options.push("ndots:5".to_owned());
        }
        _ => {
            // The host's resolvers may be on its loopback, which a Pod has of its own: the proxy forwards instead.
            let reachable =
                |server: &String| on_host || !server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            servers.extend(host_servers.into_iter().filter(reachable));
            if servers.is_empty() {
                servers.push(dns.to_string());
            }
            search.extend(host_search);
            options.extend(host_options);
        }
    }
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        search.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|known| known.split(':').next() != Some(&name));
            options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    search.retain(|domain| seen.insert(domain.clone()));
    let mut text = String::new();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    // Resolvers read no more than three.
    for server in servers.iter().take(3) {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

fn parse(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut search, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words.next()),
            Some("search") => search = words.filter(|domain| domain != ".").collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    (servers, search, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let host = "search corp.example\nnameserver 127.0.0.53\noptions edns0\n";
        let dns: IpAddr = "10.96.0.10".parse().unwrap();
        for (spec, expected) in [
            (
                json!({"containers": []}),
                "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n",
            ),
            (
                json!({"containers": [], "dnsPolicy": "Default"}),
                "search corp.example\nnameserver 10.96.0.10\noptions edns0\n",
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "options": [{"name": "ndots", "value": "2"}]}}),
                "nameserver 192.0.2.1\noptions ndots:2\n",
            ),
        ] {
            let pod = pod(spec);
            assert_eq!(resolv_conf(&pod, pod.spec.as_ref().unwrap(), dns, host), expected);
        }
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, pod.spec.as_ref().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(text.ends_with("10.0.0.2\th.s.ns.svc.cluster.local\th\n192.0.2.9\ta\tb\n"), "{text}");
    }
}
