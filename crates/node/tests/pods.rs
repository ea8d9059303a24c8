//! Real Pods, as root: API server, node, runtime and network in one process, which is its own keeper too.
//!
//! `cargo test -p node --test pods [NAME…]` runs the tests whose name holds one of the NAMEs.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports on its streams")]

use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node as NodeObject, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use lifecycle::Scope;
use oci::layer::{Options, write};
use oci::{Descriptor, ImageConfig, Manifest, Platform, Reference, media_type};
use serde_json::{Value, json};
use tower::ServiceExt;

type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! tests {
    ($($name:ident)*) => { &[$((stringify!($name), || Box::pin($name()))),*] };
}

const TESTS: &[Test] = tests! {
    the_node_registers
    a_pod_serves_and_is_drained
    a_pod_is_ready_soon
    programs_that_end_have_their_exit_codes
    a_missing_program_is_explained
    volumes_and_environment_reach_the_program
    a_new_daemon_takes_over_what_runs
    what_has_no_pod_is_ended
};

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|verb| verb == "keeper") {
        return runtime::keeper_main(&args[2..]);
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("Pods are made by root only: run this test as root");
        return ExitCode::FAILURE;
    }
    let names: Vec<String> = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let names: Vec<&String> = names.iter().filter(|name| !name.starts_with('-')).collect();
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    }
    let mut failed = Vec::new();
    for (name, test) in TESTS {
        if !names.is_empty() && !names.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begin = Instant::now();
        let result = std::thread::spawn(move || {
            let executor =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            executor.block_on(async {
                tokio::time::timeout(Duration::from_secs(120), test()).await.expect("in time")
            });
        })
        .join();
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.0?})", begin.elapsed());
        if result.is_err() {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}

const NODE: &str = "n1";
const IMAGE: &str = "localhost/busybox";

/// A state folder with an API server, and a node that can be stopped and started again.
struct World {
    dir: tempfile::TempDir,
    instance: String,
    server: apiserver::Server,
    images: images::Store,
    network: network::Network,
    client: Client,
}

/// A node that runs.
struct Agent {
    scope: Scope,
    node: node::Node,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        static COUNT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let instance = format!("{:04x}{count:04x}", std::process::id() as u16);
        let network = network::Network::open(network::Config {
            state_dir: dir.path().to_owned(),
            instance: instance.clone(),
        })
        .unwrap();
        let images = images::Store::open(dir.path()).unwrap();
        add_image(&images);
        fs::create_dir_all(dir.path().join("store")).unwrap();
        let store = store::Store::open(&dir.path().join("store/db"), store::Options::default()).unwrap();
        let server = apiserver::Server::open(apiserver::Config::new(store)).await.unwrap();
        let client = server.client(apiserver::Identity::admin());
        for name in ["gantry-system", "default"] {
            let mut namespace = Namespace::default();
            namespace.metadata.name = Some(name.to_owned());
            // It may be there from the start.
            let _ = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
        }
        Self { dir, instance, server, images, network, client }
    }

    fn start(&self) -> Agent {
        let runtime = runtime::Runtime::open(runtime::Config {
            state_dir: self.dir.path().to_owned(),
            instance: self.instance.clone(),
            exe: std::env::current_exe().unwrap(),
        })
        .unwrap();
        let node = node::Node::open(node::Config {
            client: self.server.client(apiserver::Identity::node(NODE)),
            node_name: NODE.to_owned(),
            state_dir: self.dir.path().to_owned(),
            images: self.images.clone(),
            registries: registry::Config::default(),
            runtime,
            network: self.network.clone(),
            kubelet_port: None,
        })
        .unwrap();
        let scope = Scope::new("node");
        let (agent, inner) = (node.clone(), scope.child("agent"));
        scope.spawn_graceful("node", async move { agent.run(&inner).await });
        Agent { scope, node }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, spec: Value) -> Pod {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        pod["spec"]["nodeName"] = json!(NODE);
        let pod: Pod = serde_json::from_value(pod).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Waits until the Pod is as asked; `None` is one that is no more.
    async fn until(&self, name: &str, what: &str, is: impl Fn(Option<&Pod>) -> bool) -> Option<Pod> {
        let watched = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(self.pods(), watched).default_backoff().boxed();
        let mut last = None;
        let wait = async {
            let mut listed = false;
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => last = Some(pod),
                    Ok(watcher::Event::Delete(_)) => last = None,
                    Ok(watcher::Event::InitDone) => listed = true,
                    _ => continue,
                }
                if (listed || last.is_some()) && is(last.as_ref()) {
                    return;
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), wait).await.is_err() {
            let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
            for event in events.list(&ListParams::default()).await.unwrap() {
                eprintln!("{}: {}", event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            }
            let status = last.and_then(|pod| pod.status);
            panic!("{name} never {what}: {}", serde_json::to_string_pretty(&status).unwrap());
        }
        last
    }

    async fn ready(&self, name: &str) -> Pod {
        self.until(name, "ready", |pod| pod.is_some_and(|pod| condition(pod, "Ready") == Some("True")))
            .await
            .unwrap()
    }

    async fn phase(&self, name: &str, phase: &str) -> Pod {
        let is = |pod: Option<&Pod>| pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref()) == Some(phase);
        self.until(name, phase, is).await.unwrap()
    }

    async fn gone(&self, name: &str) {
        self.until(name, "gone", |pod| pod.is_none()).await;
    }

    /// Nothing of a Pod is left on the machine.
    async fn clean(&self) {
        let pods = self.dir.path().join("pods");
        let left = || fs::read_dir(&pods).map_or(0, Iterator::count) + self.network.attached().len();
        let begin = Instant::now();
        // The object goes first, the last folders right after it.
        while left() > 0 && begin.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(left(), 0, "{:?}", self.network.attached());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(pods.to_str().unwrap()), "{mounts}");
    }

    async fn end(self, agent: Agent) {
        agent.scope.shutdown(Duration::from_secs(5)).await;
    }
}

/// A test that fails leaves nothing behind either.
impl Drop for World {
    fn drop(&mut self) {
        let config = runtime::Config {
            state_dir: self.dir.path().to_owned(),
            instance: self.instance.clone(),
            exe: std::env::current_exe().unwrap(),
        };
        let removed = std::thread::spawn(move || {
            let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            executor.block_on(async { runtime::Runtime::open(config).unwrap().destroy().await })
        });
        if let Err(error) = removed.join().expect("no panic").map_err(|error| error.to_string()) {
            eprintln!("containers are left: {error}");
        }
        if let Err(error) = self.network.destroy() {
            eprintln!("a network is left: {error}");
        }
    }
}

fn add_image(store: &images::Store) {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let (layer, made) = write(Options::default(), |w| {
        w.directory("tmp", 0o1777)?;
        w.file("bin/busybox", 0o755, busybox.len() as u64, &busybox[..])?;
        for applet in ["sh", "cat", "echo", "httpd", "sleep", "id", "nc", "trap", "env"] {
            w.symlink(&format!("bin/{applet}"), "busybox")?;
        }
        Ok(())
    })
    .unwrap();
    let mut config = ImageConfig::new(&Platform::host());
    config.config.user = "65532:65532".to_owned();
    config.rootfs.diff_ids = vec![made.diff_id];
    let config = config.to_vec();
    store.put(&layer, None).unwrap();
    store.put(&config, None).unwrap();
    let layers = vec![Descriptor::of(media_type::OCI_LAYER_GZIP, &layer)];
    let manifest = Manifest::new(Descriptor::of(media_type::OCI_CONFIG, &config), layers).to_vec();
    store.put_manifest(&Reference::parse(IMAGE).unwrap(), manifest, None).unwrap();
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

fn script(script: &str) -> Value {
    json!({"name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", script]})
}

fn restricted(mut container: Value) -> Value {
    container["securityContext"] = json!({"runAsNonRoot": true, "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    container
}

const GATE: &str = "node.gantry.dev/Listening";

fn server() -> Value {
    json!({"containers": [restricted(script("trap 'exit 0' TERM; httpd -f -p 8080 -h /tmp & wait"))], "readinessGates": [{"conditionType": GATE}],
        "terminationGracePeriodSeconds": 10})
}

async fn logs(agent: &Agent, pod: &str, query: &str) -> String {
    let request =
        http::Request::get(format!("/containerLogs/default/{pod}/c?{query}")).body(axum::body::Body::empty());
    let response = agent.node.router().oneshot(request.unwrap()).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn the_node_registers() {
    let world = World::new().await;
    let agent = world.start();
    let nodes: Api<NodeObject> = Api::all(world.client.clone());
    let mut events = watcher(nodes, watcher::Config::default()).default_backoff().applied_objects().boxed();
    let ready = loop {
        let node = events.next().await.unwrap().unwrap();
        let status = node.status.unwrap_or_default();
        if status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True") {
            break status;
        }
    };
    assert!(ready.capacity.unwrap().contains_key("memory"));
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "kube-node-lease");
    let mut events = watcher(leases, watcher::Config::default()).default_backoff().applied_objects().boxed();
    assert_eq!(events.next().await.unwrap().unwrap().name_any(), NODE);
    world.end(agent).await;
}

async fn a_pod_serves_and_is_drained() {
    let world = World::new().await;
    let lease: Lease = serde_json::from_value(
        json!({"metadata": {"name": "px", "labels": {"proxy.gantry.dev/drain": "true"}}}),
    )
    .unwrap();
    Api::namespaced(world.client.clone(), "gantry-system")
        .create(&PostParams::default(), &lease)
        .await
        .unwrap();
    let agent = world.start();
    world.create("web", server()).await;
    let pod = world.ready("web").await;
    let listening = &pod.annotations()["node.gantry.dev/listening"];
    assert!(listening.contains("\"port\":8080") && listening.contains("\"http\":true"), "{listening}");
    let status = pod.status.clone().unwrap();
    assert!(status.pod_ip.is_some() && status.container_statuses.unwrap()[0].image_id.contains("@sha256:"));
    world.pods().delete("web", &DeleteParams::default()).await.unwrap();
    // A Pod that is made later is ready: the deletion was seen long ago.
    world.create("later", server()).await;
    world.ready("later").await;
    let pod = world.pods().get("web").await.unwrap();
    assert_eq!(condition(&pod, "Ready"), Some("True"), "not drained, so not signalled");
    let drained = json!({"status": {"conditions": [{"type": "px.proxy.gantry.dev/Drained", "status": "True", "reason": "Idle"}]}});
    world.pods().patch_status("web", &PatchParams::default(), &Patch::Strategic(&drained)).await.unwrap();
    world.gone("web").await;
    world.pods().patch_status("later", &PatchParams::default(), &Patch::Strategic(&drained)).await.unwrap();
    world.pods().delete("later", &DeleteParams::default()).await.unwrap();
    world.gone("later").await;
    world.clean().await;
    world.end(agent).await;
}

async fn a_pod_is_ready_soon() {
    let world = World::new().await;
    let agent = world.start();
    world.create("warm", server()).await;
    world.ready("warm").await;
    let mut times = Vec::new();
    for round in 0..10 {
        let name = format!("p{round}");
        let begin = Instant::now();
        world.create(&name, server()).await;
        world.ready(&name).await;
        times.push(begin.elapsed());
        world.pods().delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
        world.gone(&name).await;
    }
    times.sort();
    println!("POST to Ready: median {:.1?}, longest {:.1?}", times[5], times[9]);
    assert!(times[5] < Duration::from_millis(500), "{times:?}");
    world.end(agent).await;
}

async fn programs_that_end_have_their_exit_codes() {
    let world = World::new().await;
    let agent = world.start();
    world.create("bad", json!({"restartPolicy": "Never", "containers": [script("echo out; echo err >&2; echo words > /dev/termination-log; exit 3")]})).await;
    world.create("good", json!({"restartPolicy": "OnFailure", "containers": [script("echo done")]})).await;
    world.create("again", json!({"containers": [script("echo run; exit 1")]})).await;
    let pod = world.phase("bad", "Failed").await;
    let ended = pod.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.message.as_deref()), (3, Some("words\n")));
    world.phase("good", "Succeeded").await;
    assert_eq!(logs(&agent, "good", "").await, "done\n");
    let text = logs(&agent, "bad", "").await;
    assert!(text.contains("out\n") && text.contains("err\n"), "{text}");
    let waits = |pod: Option<&Pod>| {
        let status = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first());
        let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
        waiting == Some("CrashLoopBackOff") && status.is_some_and(|status| status.restart_count == 1)
    };
    world.until("again", "waits", waits).await;
    assert_eq!(logs(&agent, "again", "previous=true").await, "run\n");
    world.pods().delete("again", &DeleteParams::default()).await.unwrap();
    world.gone("again").await;
    world.end(agent).await;
}

async fn a_missing_program_is_explained() {
    let world = World::new().await;
    let agent = world.start();
    let container = json!({"name": "c", "image": IMAGE, "command": ["/no/such"]});
    world.create("missing", json!({"restartPolicy": "Never", "containers": [container]})).await;
    let pod = world.phase("missing", "Failed").await;
    let ended = pod.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_eq!(ended.reason.as_deref(), Some("StartError"));
    assert!(ended.message.as_deref().unwrap_or_default().contains("/no/such"), "{ended:?}");
    let container = json!({"name": "c", "image": "localhost/nothing"});
    world.create("absent", json!({"containers": [container]})).await;
    let waits = |pod: Option<&Pod>| {
        let status = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref()?.first());
        status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
            == Some("ErrImagePull")
    };
    world.until("absent", "waits", waits).await;
    world.end(agent).await;
}

async fn volumes_and_environment_reach_the_program() {
    let world = World::new().await;
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"k": "one"}})).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "default");
    maps.create(&PostParams::default(), &map).await.unwrap();
    let agent = world.start();
    let mut container = script(
        "echo env $A $IP; cat /etc/conf/k; echo; id -u; echo x > /mem/x && cat /mem/x; \
         while [ \"$(cat /etc/conf/k)\" = one ]; do sleep 0.1; done; cat /etc/conf/k",
    );
    container["env"] = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    container["volumeMounts"] =
        json!([{"name": "conf", "mountPath": "/etc/conf"}, {"name": "mem", "mountPath": "/mem"}]);
    let volumes = json!([{"name": "conf", "configMap": {"name": "m"}}, {"name": "mem", "emptyDir": {"medium": "Memory"}}]);
    world
        .create("vol", json!({"restartPolicy": "Never", "containers": [container], "volumes": volumes}))
        .await;
    world.ready("vol").await;
    let patch = json!({"data": {"k": "two"}});
    maps.patch("m", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let pod = world.phase("vol", "Succeeded").await;
    let ip = pod.status.unwrap().pod_ip.unwrap();
    assert_eq!(logs(&agent, "vol", "").await, format!("env one {ip}\none\n65532\nx\ntwo"));
    world.pods().delete("vol", &DeleteParams::default()).await.unwrap();
    world.gone("vol").await;
    world.clean().await;
    world.end(agent).await;
}

async fn a_new_daemon_takes_over_what_runs() {
    let world = World::new().await;
    let agent = world.start();
    world.create("web", server()).await;
    let before = world.ready("web").await.status.unwrap().container_statuses.unwrap();
    agent.scope.shutdown(Duration::from_secs(5)).await;
    let agent = world.start();
    // Ready comes after the daemon has taken over what it found.
    world.create("later", server()).await;
    world.ready("later").await;
    let pod = world.pods().get("web").await.unwrap();
    assert_eq!(condition(&pod, "Ready"), Some("True"), "{:?} {:?}", pod.metadata.annotations, pod.status);
    let after = pod.status.unwrap().container_statuses.unwrap();
    assert_eq!((&after[0].container_id, after[0].restart_count), (&before[0].container_id, 0));
    for name in ["web", "later"] {
        world.pods().delete(name, &DeleteParams::default().grace_period(2)).await.unwrap();
        world.gone(name).await;
    }
    world.clean().await;
    world.end(agent).await;
}

async fn what_has_no_pod_is_ended() {
    let world = World::new().await;
    let agent = world.start();
    world.create("web", server()).await;
    world.ready("web").await;
    agent.scope.shutdown(Duration::from_secs(5)).await;
    world.pods().delete("web", &DeleteParams::default().grace_period(0)).await.unwrap();
    let agent = world.start();
    world.clean().await;
    world.end(agent).await;
}
