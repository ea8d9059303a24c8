//! What a Pod's object or its program can do to the node: write without end, never end, reach the host, look at it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Door, Stage};

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "pods-deep-folders",
        wanted: "a Pod that nests thousands of folders ends, and nothing of it stays",
        short: true,
        attack: deep_folders,
    },
    Door {
        name: "pods-empty-dir-limit",
        wanted: "a Pod that writes more than its emptyDir's sizeLimit is evicted, and says which limit it was",
        short: true,
        attack: |stage| evicted(stage, &fill("/data"), "EmptyDir volume"),
    },
    Door {
        name: "pods-endless-grace",
        wanted: "a grace period of 2^63-1 seconds overflows no clock, and the Pod can be ended",
        short: true,
        attack: endless_grace,
    },
    Door {
        name: "pods-fields-not-obeyed",
        wanted: "a field that changes isolation and is not obeyed is refused by an event, and nothing runs",
        short: true,
        attack: fields,
    },
    Door {
        name: "pods-finalizer",
        wanted: "a finalizer keeps the object, and not its program",
        short: true,
        attack: finalizer,
    },
    Door {
        name: "pods-lease-of-a-dead-proxy",
        wanted: "the lease of a proxy that is no more goes by itself, and deletions do not wait for it",
        short: true,
        attack: dead_lease,
    },
    Door {
        name: "pods-log-limit",
        wanted: "what a Pod logs counts as what it writes, and beyond its limit it is evicted",
        short: false,
        attack: |stage| evicted(stage, &say(), "ephemeral"),
    },
    Door {
        name: "pods-probe-answer",
        wanted: "what a program answers its probe stands in the event short, on one line, without control characters",
        short: true,
        attack: probe_answer,
    },
    Door {
        name: "pods-probe-of-the-host",
        wanted: "a probe that names the host's loopback is asked inside the Pod, where nothing listens",
        short: true,
        attack: probe_host,
    },
    Door {
        name: "pods-writable-layer-limit",
        wanted: "a Pod that fills its own root beyond its ephemeral-storage limit is evicted",
        short: true,
        attack: |stage| evicted(stage, &fill("/"), "ephemeral"),
    },
];

const PODS: &str = "/api/v1/namespaces/default/pods";
/// Longer than anything here may take on a machine that is busy; what counts is the order of things.
const PATIENCE: Duration = Duration::from_secs(90);
/// The drain deadline of a Pod with the usual grace period is 20 s: what waited for a dead proxy took that long.
const NOT_WAITED: Duration = Duration::from_secs(15);
const NAME: &str = "door";

/// The image of the hostile program.
fn writer(stage: &Stage) -> Result<String> {
    let folder = crate::tidy::root()?.join("tests/programs/writer");
    let folder = folder.to_str().context("the project's folder is no text")?;
    let said = stage.sandbox.ok(["build", folder, "--format", "json"])?;
    let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
    Ok(facts["image"].as_str().context("gantry build names no image")?.to_owned())
}

/// Applies a Pod of the writer, with more of a spec, and of a container.
fn run(stage: &Stage, arguments: &[&str], container: &Value, spec: &Value, metadata: &Value) -> Result<()> {
    let mut own = json!({"name": "writer", "image": writer(stage)?, "args": arguments,
        "securityContext": {"runAsUser": 0}});
    merge(&mut own, container);
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": NAME},
        "spec": {"containers": [own]}});
    merge(&mut pod["spec"], spec);
    merge(&mut pod["metadata"], metadata);
    stage.apply(&pod.to_string())
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn get(stage: &Stage) -> Result<Value> {
    stage.sandbox.get(&format!("{PODS}/{NAME}"))
}

/// Asks until it holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    while !holds()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(begun.elapsed())
}

fn until_logged(stage: &Stage, words: &str) -> Result<()> {
    until(words, || Ok(stage.sandbox.kubectl(["logs", NAME]).is_ok_and(|log| log.contains(words)))).map(drop)
}

fn until_running(stage: &Stage) -> Result<()> {
    until("the Pod runs", || Ok(get(stage)?["status"]["phase"] == "Running")).map(drop)
}

/// Deletes the Pod and waits until it is gone.
fn delete(stage: &Stage, more: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    stage.sandbox.kubectl([&["delete", "pod", NAME, &timeout], more].concat())?;
    Ok(begun.elapsed())
}

/// The messages of the Pod's events with that reason.
fn events(stage: &Stage, reason: &str) -> Result<Vec<String>> {
    let list = stage.sandbox.get("/api/v1/namespaces/default/events")?;
    let ours = list["items"].as_array().into_iter().flatten().filter(|event| {
        event["involvedObject"]["name"] == NAME && (reason.is_empty() || event["reason"] == reason)
    });
    Ok(ours.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

fn fill(dir: &str) -> Value {
    json!({
        "args": ["fill", dir, "64"],
        "resources": if dir == "/" { json!({"limits": {"ephemeral-storage": "8Mi"}}) } else { json!({}) },
        "volumeMounts": if dir == "/" { json!([]) } else { json!([{"name": "data", "mountPath": dir}]) },
    })
}

fn say() -> Value {
    json!({"args": ["say", "20"], "resources": {"limits": {"ephemeral-storage": "8Mi"}}})
}

fn evicted(stage: &Stage, container: &Value, words: &str) -> Result<String> {
    let volumes = json!({"volumes": [{"name": "data", "emptyDir": {"sizeLimit": "8Mi"}}]});
    run(stage, &[], container, &volumes, &json!({}))?;
    let took = until("the Pod has failed", || Ok(get(stage)?["status"]["phase"] == "Failed"))?;
    let status = &get(stage)?["status"];
    let message = status["message"].as_str().unwrap_or_default();
    ensure!(status["reason"] == "Evicted" && message.contains(words), "it failed otherwise: {status}");
    let told = events(stage, "Evicted")?;
    ensure!(told.iter().any(|event| event.contains(words)), "no event says so: {told:?}");
    let volumes = format!("{}/pods", stage.sandbox.state().display());
    until("its space is given back", || Ok(!holds_more(&volumes, 16 << 20)?))?;
    delete(stage, &[])?;
    Ok(format!("evicted within {:.1} s: {}", took.as_secs_f64(), message.trim()))
}

fn holds_more(folder: &str, bytes: u64) -> Result<bool> {
    let mut command = std::process::Command::new("du");
    command.args(["-s", "--block-size=1", folder]);
    // Files vanish while they are counted: what du says of them is no matter.
    let said = crate::sandbox::output(command)?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let held: u64 = said.split_whitespace().next().unwrap_or("0").parse().context("read du")?;
    Ok(held > bytes)
}

fn deep_folders(stage: &Stage) -> Result<String> {
    let mount = json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    let volumes = json!({"volumes": [{"name": "data", "emptyDir": {}}]});
    let levels = if stage.setting.short { "2000" } else { "10000" };
    run(stage, &["nest", "/data", levels], &mount, &volumes, &json!({}))?;
    until_logged(stage, "done: <nil>")?;
    let uid = get(stage)?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let took = delete(stage, &[])?;
    let left = stage.sandbox.state().join("pods").join(uid);
    until("nothing of it stays", || Ok(!left.exists()))?;
    Ok(format!("gone within {:.1} s", took.as_secs_f64()))
}

fn endless_grace(stage: &Stage) -> Result<String> {
    let spec = json!({"terminationGracePeriodSeconds": i64::MAX});
    run(stage, &["wait"], &json!({}), &spec, &json!({}))?;
    until_running(stage)?;
    // As its object says: the program ends at SIGTERM, so nobody waits for the rest.
    let took = delete(stage, &[])?;
    run(stage, &["wait"], &json!({}), &spec, &json!({}))?;
    until_running(stage)?;
    delete(stage, &["--grace-period=0", "--force"])?;
    Ok(format!("gone within {:.1} s", took.as_secs_f64()))
}

fn finalizer(stage: &Stage) -> Result<String> {
    run(stage, &["wait"], &json!({}), &json!({}), &json!({"finalizers": ["door.example.com/held"]}))?;
    until_running(stage)?;
    stage.sandbox.kubectl(["delete", "pod", NAME, "--wait=false"])?;
    let took = until("its program has ended", || {
        Ok(get(stage)?["status"]["containerStatuses"][0]["state"]["terminated"].is_object())
    })?;
    ensure!(get(stage)?["metadata"]["deletionTimestamp"].is_string(), "the object is there still");
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    stage.sandbox.kubectl(["patch", "pod", NAME, "--type=merge", "-p", patch])?;
    until("the object goes", || Ok(get(stage).is_err()))?;
    Ok(format!("the program ended within {:.1} s, the object when it was let go", took.as_secs_f64()))
}

/// Spec, container, and what the event has to say.
fn refused() -> Vec<(Value, Value, &'static str)> {
    let pod = |spec: Value, words| (spec, json!({}), words);
    let own = |context: Value, words| (json!({}), json!({"securityContext": context}), words);
    vec![
        pod(json!({"hostPID": true}), "spec.hostPID is not supported"),
        pod(json!({"hostIPC": true}), "spec.hostIPC is not supported"),
        pod(json!({"shareProcessNamespace": true}), "spec.shareProcessNamespace is not supported"),
        pod(
            json!({"securityContext": {"sysctls": [{"name": "kernel.core_pattern", "value": "|/x"}]}}),
            "not allowlisted",
        ),
        pod(
            json!({"hostNetwork": true,
                "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}]}}),
            "not allowed with host net enabled",
        ),
        pod(
            json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
            "Cannot enforce AppArmor",
        ),
        own(json!({"procMount": "Unmasked"}), "procMount"),
        own(
            json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "x"}}),
            "Cannot enforce AppArmor",
        ),
    ]
}

fn fields(stage: &Stage) -> Result<String> {
    let cases = refused();
    let count = cases.len();
    for (spec, container, words) in cases {
        let said = run(stage, &["wait"], &container, &spec, &json!({}));
        if let Err(error) = &said {
            // The API server's own refusal is one too, if it names the field.
            ensure!(
                format!("{error:#}").contains("Forbidden") || format!("{error:#}").contains("Invalid"),
                "{error:#}"
            );
            continue;
        }
        until(words, || Ok(events(stage, "")?.iter().any(|event| event.contains(words))))?;
        let status = &get(stage)?["status"];
        ensure!(status["containerStatuses"][0]["state"]["running"].is_null(), "{words}: it runs: {status}");
        delete(stage, &[])?;
    }
    // What is safe is obeyed.
    let spec = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "1"}]}});
    run(stage, &["wait"], &json!({}), &spec, &json!({}))?;
    until_running(stage)?;
    delete(stage, &[])?;
    Ok(format!("{count} refused by name, a safe sysctl obeyed"))
}

fn dead_lease(stage: &Stage) -> Result<String> {
    let holder = json!({"pid": 1, "startTicks": 1, "bootId": "before this boot", "pidNamespace": "pid:[1]"});
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "proxy-00000000", "namespace": "gantry-system",
            "labels": {"proxy.gantry.dev/drain": "true"},
            "annotations": {"proxy.gantry.dev/holder": holder.to_string()}},
        "spec": {"holderIdentity": "proxy-00000000"},
    });
    stage.apply(&lease.to_string())?;
    let path = "/apis/coordination.k8s.io/v1/namespaces/gantry-system/leases";
    let took = until("the lease goes", || Ok(stage.sandbox.get(&format!("{path}/proxy-00000000")).is_err()))?;
    let left = stage.sandbox.get(path)?["items"].as_array().map_or(0, Vec::len);
    ensure!(left == 1, "{left} leases are left: the running proxy's own has to stay");
    run(stage, &["wait"], &json!({}), &json!({}), &json!({}))?;
    until_running(stage)?;
    let deletion = delete(stage, &[])?;
    ensure!(deletion < NOT_WAITED, "the deletion took {:.1} s", deletion.as_secs_f64());
    Ok(format!("gone within {:.1} s, a Pod within {:.1} s", took.as_secs_f64(), deletion.as_secs_f64()))
}

fn probe_answer(stage: &Stage) -> Result<String> {
    let probe = json!({"readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}});
    run(stage, &["answer"], &probe, &json!({}), &json!({}))?;
    until("the probe's event", || Ok(events(stage, "Unhealthy")?.iter().any(|event| event.contains("418"))))?;
    let said = events(stage, "Unhealthy")?;
    let bad = said.iter().find(|event| {
        event.chars().count() > 1001 || event.chars().any(|char| char.is_control() || char == '\u{202e}')
    });
    ensure!(bad.is_none(), "{bad:?}");
    delete(stage, &[])?;
    Ok(format!("{} events, each on one line", said.len()))
}

fn probe_host(stage: &Stage) -> Result<String> {
    let api = stage.sandbox.endpoint("kubernetes")?;
    let port: u16 = api.rsplit(':').next().context("no port")?.parse()?;
    // On the host this would be an open port: ready at once.
    let probe =
        json!({"readinessProbe": {"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1}});
    run(stage, &["wait"], &probe, &json!({}), &json!({}))?;
    until("the probe's event", || {
        Ok(events(stage, "Unhealthy")?.iter().any(|event| event.contains("refused")))
    })?;
    let status = &get(stage)?["status"];
    let ready = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    ensure!(!ready, "the probe reached the host's API server: {status}");
    delete(stage, &[])?;
    Ok("refused inside the Pod".to_owned())
}
