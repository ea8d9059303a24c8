//! The objects of a program, pure: options in, JSON out. Pod Security "restricted", `--mount` aside.

use serde_json::{Value, json};

use super::{APP_LABEL, EXPOSE, HOST_PORT, LISTENING_GATE, RUN_LABEL, ports::Listening};
use crate::failure::{Failure, Result};

/// The port that a program is told when the user names none.
const PORT: u16 = 8080;
/// GOMEMLIMIT in hundredths of the memory limit: the rest is for what the Go heap does not count.
const MEMORY_PERCENT: u64 = 90;

/// `--mount SRC:DST[:ro]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: String,
    pub destination: String,
    pub read_only: bool,
}

/// `-p [HOST:]CONTAINER[/PROTOCOL]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub host: Option<u16>,
    pub container: u16,
    pub protocol: &'static str,
}

/// What a program needs, whatever image it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    pub namespace: String,
    pub image: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub cpu: Option<String>,
    pub memory: Option<Memory>,
    pub mounts: Vec<Mount>,
    pub publish: Vec<Publish>,
    pub expose: Option<String>,
}

/// A memory limit as it was written, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    pub text: String,
    pub bytes: u64,
}

impl Mount {
    /// Reads `SRC:DST[:ro|:rw]`.
    pub fn parse(text: &str, folder: &std::path::Path) -> Result<Self> {
        let wrong = || {
            Failure::usage(format!("--mount {text}: not SRC:DST with an absolute DST"))
                .hint("for example --mount ./data:/data or --mount ./data:/data:ro".to_owned())
        };
        let (rest, read_only) = match text.strip_suffix(":ro") {
            Some(rest) => (rest, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        let (source, destination) = rest.rsplit_once(':').ok_or_else(wrong)?;
        if source.is_empty() || !destination.starts_with('/') {
            return Err(wrong());
        }
        let path = folder.join(source);
        let path = path.canonicalize().map_err(|error| {
            Failure::from_error(&error).context(format!("--mount {text}")).hint(format!("mkdir -p {source}"))
        })?;
        Ok(Self { source: path.display().to_string(), destination: destination.to_owned(), read_only })
    }
}

impl Publish {
    /// Reads `[HOST:]CONTAINER[/tcp|/udp]`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Failure::usage(format!("-p {text}: not HOST:CONTAINER with port numbers"))
                .hint("for example -p 80:8080".to_owned())
        };
        let (numbers, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or_default(), "TCP"),
            Some((numbers, "udp")) => (numbers, "UDP"),
            Some(_) => return Err(wrong()),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        match numbers.split_once(':') {
            Some((host, container)) => {
                Ok(Self { host: Some(number(host)?), container: number(container)?, protocol })
            }
            None => Ok(Self { host: None, container: number(numbers)?, protocol }),
        }
    }
}

impl Memory {
    /// Reads a quantity (`256Mi`, `1G`, bytes).
    pub fn parse(text: &str) -> Result<Self> {
        const UNITS: &[(&str, u64)] = &[
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("Ti", 1 << 40),
            ("k", 1000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
        ];
        let wrong =
            |hint: String| Failure::usage(format!("--memory {text}: not an amount of memory")).hint(hint);
        let (number, unit) = UNITS
            .iter()
            .find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number, *factor)))
            .unwrap_or((text, 1));
        let example = || {
            // Docker's spelling; in Kubernetes `m` is a thousandth.
            let docker = text.strip_suffix('m').filter(|number| number.parse::<u64>().is_ok());
            docker.map_or("for example --memory 256Mi".to_owned(), |number| format!("--memory {number}Mi"))
        };
        let number: f64 = number.parse().map_err(|_| wrong(example()))?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a limit needs no more digits than a float has"
        )]
        let bytes = (number * unit as f64) as u64;
        if bytes < 4 << 20 {
            return Err(wrong("a Go program needs some 8Mi at least".to_owned()));
        }
        Ok(Self { text: text.to_owned(), bytes })
    }
}

/// Checks `--cpu`: cores, or thousandths with an `m`.
pub fn check_cpu(text: &str) -> Result<()> {
    let number = text.strip_suffix('m').unwrap_or(text).parse::<f64>();
    if number.is_ok_and(|number| number > 0.0 && number.is_finite()) {
        return Ok(());
    }
    Err(Failure::usage(format!("--cpu {text}: not an amount of CPU"))
        .hint("for example --cpu 0.5 or --cpu 500m".to_owned()))
}

/// Reads `KEY=VALUE`; a bare `KEY` takes the caller's value.
pub fn parse_variable(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<(String, String)> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, lookup(text)),
    };
    let value = value.ok_or_else(|| {
        Failure::usage(format!("--env {text}: no such variable here")).hint(format!("--env {text}=VALUE"))
    })?;
    if key.is_empty() || key.contains([' ', '\0']) {
        return Err(Failure::usage(format!("--env {text}: not KEY=VALUE"))
            .hint("for example --env LOG=debug".to_owned()));
    }
    Ok((key.to_owned(), value))
}

/// Reads the lines of an `--env-file`: `KEY=VALUE`, comments and empty lines; quotes around a value go.
pub fn parse_variables(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (key, value) = parse_variable(line.strip_prefix("export ").unwrap_or(line), &lookup)?;
            let inner = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            let value = inner.map(str::to_owned).unwrap_or(value);
            Ok((key.trim().to_owned(), value))
        })
        .collect()
}

impl Spec {
    /// The Deployment to apply. `spec.replicas` is not in it: see [`super::SCALE_MANAGER`].
    pub fn deployment(&self) -> Value {
        let mut pod = self.pod_spec(self.environment_of_service());
        // Without a port of its own a Pod is ready when it listens on any.
        pod["readinessGates"] = json!([{ "conditionType": LISTENING_GATE }]);
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": self.labels() },
            "spec": {
                "selector": { "matchLabels": { APP_LABEL: self.name } },
                "template": {
                    "metadata": { "labels": { APP_LABEL: self.name } },
                    "spec": pod,
                },
            },
        })
    }

    /// The Pod of `gantry run`; with `stdin` its program's standard input is that of the first who attaches.
    pub fn run_pod(&self, name: &str, stdin: bool) -> Value {
        let mut pod = self.pod_spec(self.environment.clone());
        pod["restartPolicy"] = "Never".into();
        if stdin {
            pod["containers"][0]["stdin"] = true.into();
            pod["containers"][0]["stdinOnce"] = true.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": self.namespace, "labels": {
                RUN_LABEL: self.name,
                "app.kubernetes.io/managed-by": "gantry",
            } },
            "spec": pod,
        })
    }

    /// The Service to apply, once it is known what listens.
    pub fn service(&self, listening: &[Listening]) -> Value {
        let mut annotations = serde_json::Map::new();
        if self.publish.iter().all(|publish| publish.host.is_none()) {
            annotations.insert(HOST_PORT.to_owned(), "auto".into());
        }
        if let Some(address) = &self.expose {
            annotations.insert(EXPOSE.to_owned(), address.clone().into());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": self.labels(),
                "annotations": annotations,
            },
            "spec": {
                "type": "LoadBalancer",
                "selector": { APP_LABEL: self.name },
                "ports": self.service_ports(listening),
            },
        })
    }

    fn labels(&self) -> Value {
        json!({ APP_LABEL: self.name, "app.kubernetes.io/managed-by": "gantry" })
    }

    fn service_ports(&self, listening: &[Listening]) -> Vec<Value> {
        let http = |port: u16| listening.iter().any(|seen| seen.port == port && seen.http);
        let wanted: Vec<(u16, u16, &str)> = if self.publish.is_empty() {
            listening.iter().map(|seen| (seen.port, seen.port, seen.protocol.as_str())).collect()
        } else {
            let given = self.publish.iter();
            given
                .map(|publish| {
                    (publish.host.unwrap_or(publish.container), publish.container, publish.protocol)
                })
                .collect()
        };
        let mut ports: Vec<Value> = Vec::new();
        for (port, target, protocol) in wanted {
            let is_http = protocol == "TCP" && http(target);
            let first_http = is_http && !ports.iter().any(|port| port["name"] == "http");
            let name = match protocol {
                _ if first_http => "http".to_owned(),
                _ if is_http => format!("http-{port}"),
                "TCP" => format!("tcp-{port}"),
                _ => format!("udp-{port}"),
            };
            let mut entry = json!({ "name": name, "port": port, "targetPort": target, "protocol": protocol });
            if is_http {
                entry["appProtocol"] = "http".into();
            }
            ports.push(entry);
        }
        ports
    }

    fn environment_of_service(&self) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        if !environment.iter().any(|(key, _)| key == "PORT") {
            let port =
                self.publish.iter().find(|publish| publish.protocol == "TCP").map_or(PORT, |p| p.container);
            environment.insert(0, ("PORT".to_owned(), port.to_string()));
        }
        environment
    }

    fn pod_spec(&self, mut environment: Vec<(String, String)>) -> Value {
        let mut limits = serde_json::Map::new();
        if let Some(cpu) = &self.cpu {
            limits.insert("cpu".to_owned(), cpu.clone().into());
        }
        if let Some(memory) = &self.memory {
            limits.insert("memory".to_owned(), memory.text.clone().into());
            if !environment.iter().any(|(key, _)| key == "GOMEMLIMIT") {
                let limit = memory.bytes / 100 * MEMORY_PERCENT;
                environment.push(("GOMEMLIMIT".to_owned(), limit.to_string()));
            }
        }
        // Of a variable given twice the last counts, as in a shell.
        let mut variables: Vec<Value> = Vec::new();
        for (key, value) in &environment {
            variables.retain(|variable| variable["name"] != *key);
            variables.push(json!({ "name": key, "value": value }));
        }
        let mut volumes = vec![json!({ "name": "tmp", "emptyDir": {} })];
        let mut mounts = vec![json!({ "name": "tmp", "mountPath": "/tmp" })];
        for (index, mount) in self.mounts.iter().enumerate() {
            let name = format!("mount-{index}");
            volumes.push(json!({ "name": name, "hostPath": { "path": mount.source } }));
            let mut entry = json!({ "name": name, "mountPath": mount.destination });
            if mount.read_only {
                entry["readOnly"] = true.into();
            }
            mounts.push(entry);
        }
        let mut container = json!({
            "name": self.name,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": mounts,
        });
        if !self.arguments.is_empty() {
            container["args"] = self.arguments.clone().into();
        }
        if !variables.is_empty() {
            container["env"] = variables.into();
        }
        if !limits.is_empty() {
            container["resources"] = json!({ "requests": limits, "limits": limits });
        }
        if !self.publish.is_empty() {
            let ports = self.publish.iter();
            container["ports"] =
                ports.map(|p| json!({ "containerPort": p.container, "protocol": p.protocol })).collect();
        }
        json!({
            "containers": [container],
            "volumes": volumes,
            "enableServiceLinks": false,
            "automountServiceAccountToken": false,
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let image = "localhost/hello@sha256:0".to_owned();
        Spec { name: "hello".into(), namespace: "default".into(), image, ..Spec::default() }
    }

    fn container(spec: &Spec) -> Value {
        spec.deployment()["spec"]["template"]["spec"]["containers"][0].clone()
    }

    #[test]
    fn replicas_are_left_to_scale_and_the_pod_is_restricted() {
        let deployment = spec().deployment();
        assert!(deployment["spec"].get("replicas").is_none());
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["readinessGates"][0]["conditionType"], LISTENING_GATE);
        let container = container(&spec());
        assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
        assert_eq!(container["env"], json!([{ "name": "PORT", "value": "8080" }]));
        assert!(container.get("ports").is_none());
    }

    #[test]
    fn memory_sets_what_the_collector_aims_at() {
        let memory = Some(Memory::parse("100Mi").unwrap());
        let container = container(&Spec { memory, ..spec() });
        assert_eq!(container["resources"]["limits"]["memory"], "100Mi");
        assert_eq!(
            container["env"][1],
            json!({ "name": "GOMEMLIMIT", "value": (104_857_600u64 / 100 * 90).to_string() })
        );
        let said = Memory::parse("256m").unwrap_err().to_string();
        assert_eq!(said, "error: --memory 256m: not an amount of memory\nhint: --memory 256Mi\n");
    }

    #[test]
    fn service_ports_follow_what_listens_unless_they_are_given() {
        let listening = |port, http| Listening { port, http, ..Listening::default() };
        let seen = [listening(8080, true), listening(9000, false)];
        let service = spec().service(&seen);
        assert_eq!(service["metadata"]["annotations"][HOST_PORT], "auto");
        let names: Vec<_> =
            service["spec"]["ports"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
        assert_eq!(names, ["http", "tcp-9000"]);
        let given = Spec { publish: vec![Publish::parse("80:8080").unwrap()], ..spec() };
        let service = given.service(&seen);
        assert_eq!(service["metadata"]["annotations"], json!({}));
        let expect = json!([{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "appProtocol": "http" }]);
        assert_eq!(service["spec"]["ports"], expect);
    }

    #[test]
    fn flags_are_read_or_refused_with_an_example() {
        assert_eq!(Publish::parse("8080").unwrap(), Publish { host: None, container: 8080, protocol: "TCP" });
        assert_eq!(Publish::parse("53:5353/udp").unwrap().protocol, "UDP");
        for wrong in ["", "a:b", "0:1", "70000:1", "1:2/sctp"] {
            assert!(Publish::parse(wrong).is_err(), "{wrong}");
        }
        assert!(check_cpu("500m").is_ok() && check_cpu("0.5").is_ok() && check_cpu("x").is_err());
        let lookup = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        assert_eq!(parse_variable("A=b=c", lookup).unwrap(), ("A".into(), "b=c".into()));
        assert_eq!(parse_variable("HOME", lookup).unwrap().1, "/root");
        assert!(parse_variable("NONE", lookup).is_err());
        let file = "# c\n\nA=1\nexport B=\"x y\"\nHOME\n";
        let read = parse_variables(file, lookup).unwrap();
        assert_eq!(read[1], ("B".to_owned(), "x y".to_owned()));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn mounts_are_host_paths() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let mount = Mount::parse("./data:/data:ro", folder.path()).unwrap();
        assert!(mount.read_only && mount.source.ends_with("/data"));
        let pod = Spec { mounts: vec![mount], ..spec() }.run_pod("hello-1", false);
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][1]["readOnly"], true);
        assert!(Mount::parse("./none:/x", folder.path()).is_err());
    }
}
