//! The worker against a machine that is all pretence, in virtual time.

use super::*;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, Weak};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use serde_json::json;
use tokio::net::TcpStream;

use crate::ports::{Event, Listening, Request};

/// Everything at once: runtime, network, images and API, and a journal of what was asked of them.
struct World {
    me: Weak<World>,
    journal: Mutex<Vec<String>>,
    wrote: watch::Sender<usize>,
    pod: Mutex<Value>,
    updates: watch::Sender<Update>,
    exits: Mutex<HashMap<String, watch::Sender<Option<runtime::Exit>>>>,
    /// Whether a container ends at its stop signal.
    obedient: bool,
}

fn at_start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

thread_local! {
    static BEGUN: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// The time of day that belongs to the paused clock; a test has one thread.
fn wall() -> Timestamp {
    let elapsed = BEGUN.get().map_or(Duration::ZERO, |begun| begun.elapsed());
    at_start().checked_add(elapsed).unwrap()
}

fn exit(code: Option<i32>, signal: Option<i32>) -> runtime::Exit {
    runtime::Exit { code, signal, oom_killed: false, started_at: None, finished_at: SystemTime::UNIX_EPOCH }
}

impl World {
    fn new(spec: Value, obedient: bool) -> Arc<Self> {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1"}, "spec": spec});
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        let (updates, _) = watch::channel(Update { pod: Arc::new(typed), gone: false });
        BEGUN.set(Some(Instant::now()));
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            journal: Mutex::default(),
            wrote: watch::channel(0).0,
            pod: Mutex::new(pod),
            updates,
            exits: Mutex::default(),
            obedient,
        })
    }

    fn note(&self, line: impl Into<String>) {
        let mut journal = self.journal.lock().unwrap();
        journal.push(line.into());
        self.wrote.send_replace(journal.len());
    }

    /// Waits for a line, and gives everything up to it.
    async fn until(&self, line: &str) -> Vec<String> {
        let mut wrote = self.wrote.subscribe();
        let wait = async {
            loop {
                let journal = self.journal.lock().unwrap().clone();
                if let Some(place) = journal.iter().position(|known| known == line) {
                    return journal[..=place].to_vec();
                }
                wrote.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(3600), wait).await {
            Ok(journal) => journal,
            Err(_) => panic!("{line:?} never came: {:#?}", self.journal.lock().unwrap()),
        }
    }

    /// Changes the object as an API server would.
    fn change(&self, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = self.pod.lock().unwrap();
        change(&mut pod);
        let version: u64 = pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        pod["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        self.updates.send_replace(Update { pod: Arc::new(typed.clone()), gone: false });
        typed
    }

    fn delete_pod(&self, grace: i64) {
        let until = wall().checked_add(jiff::SignedDuration::from_secs(grace)).unwrap();
        self.change(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!(status::time(until));
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        });
    }

    fn add_condition(&self, kind: &str) {
        self.change(|pod| {
            let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
            conditions.push(json!({"type": kind, "status": "True", "reason": "Idle"}));
        });
    }

    fn end(&self, container: &str, how: runtime::Exit) {
        self.exits.lock().unwrap()[container].send_replace(Some(how));
    }

    fn deps(self: &Arc<Self>, state_dir: PathBuf) -> Arc<Deps> {
        Arc::new(Deps {
            containers: Arc::clone(self) as Arc<dyn Containers>,
            sandboxes: Arc::clone(self) as Arc<dyn Sandboxes>,
            images: Arc::clone(self) as Arc<dyn Images>,
            pods: Arc::clone(self) as Arc<dyn Pods>,
            objects: Arc::clone(self) as Arc<dyn Objects>,
            events: Arc::clone(self) as Arc<dyn Events>,
            state_dir,
            node: fields::Node::default(),
            host_ip: "192.0.2.1".parse().unwrap(),
            dns_ip: "10.96.0.10".parse().unwrap(),
            wall,
        })
    }
}

struct Fake {
    id: String,
    name: String,
    world: Arc<World>,
}

impl Containers for World {
    fn create(&self, spec: runtime::Spec) -> BoxFuture<'_, Result<Arc<dyn Container>, Failure>> {
        let name = spec.annotations[crate::spec::annotation::CONTAINER].clone();
        let attempt = &spec.annotations[crate::spec::annotation::ATTEMPT];
        self.note(format!("create {name} {attempt}"));
        if spec.args == ["/missing"] {
            return Box::pin(async { Err(Failure("no such file".to_owned())) });
        }
        self.exits.lock().unwrap().insert(name.clone(), watch::channel(None).0);
        let world = self.me.upgrade().unwrap();
        Box::pin(async move { Ok(Arc::new(Fake { id: spec.id, name, world }) as Arc<dyn Container>) })
    }

    fn explain(&self, spec: &runtime::Spec) -> Option<String> {
        (spec.args == ["/missing"]).then(|| "the image has no /missing".to_owned())
    }
}

impl Container for Fake {
    fn id(&self) -> &str {
        &self.id
    }

    fn start(&self) -> BoxFuture<'_, Result<SystemTime, Failure>> {
        self.world.note(format!("start {}", self.name));
        Box::pin(async { Ok(SystemTime::UNIX_EPOCH) })
    }

    fn signal(&self, number: i32) -> BoxFuture<'_, Result<(), Failure>> {
        self.world.note(format!("signal {} {number}", self.name));
        if number == 9 || self.world.obedient {
            let how = if number == 9 { exit(None, Some(9)) } else { exit(Some(0), None) };
            self.world.end(&self.name, how);
        }
        Box::pin(async { Ok(()) })
    }

    fn wait(&self) -> BoxFuture<'static, runtime::Exit> {
        let mut exits = self.world.exits.lock().unwrap()[&self.name].subscribe();
        Box::pin(async move {
            let found = exits.wait_for(Option::is_some).await.map(|exit| *exit);
            found.ok().flatten().unwrap_or(exit(None, None))
        })
    }

    fn delete(&self) -> BoxFuture<'_, Result<(), Failure>> {
        self.world.note(format!("remove {}", self.name));
        Box::pin(async { Ok(()) })
    }
}

impl Sandboxes for World {
    fn attach(&self, _: &str, _: bool) -> BoxFuture<'_, Result<Sandbox, Failure>> {
        self.note("attach");
        Box::pin(async { Ok(Sandbox { ip: "10.0.0.2".parse().unwrap(), netns: None, first_id: None }) })
    }

    fn detach(&self, _: &str) -> BoxFuture<'_, Result<(), Failure>> {
        self.note("detach");
        Box::pin(async { Ok(()) })
    }

    fn dial(&self, _: crate::ports::Side<'_>, _: SocketAddr) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }

    fn listening(&self, _: &str) -> BoxFuture<'_, std::io::Result<Vec<Listening>>> {
        let socket = |address: &str| Listening { port: 8080, address: address.parse().unwrap(), udp: false };
        Box::pin(async move { Ok(vec![socket("::")]) })
    }
}

impl Images for World {
    fn image(&self, request: Request) -> BoxFuture<'_, Result<Image, PullError>> {
        let config = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/x"]},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let image = Image {
            id: format!("{}@sha256:0", request.image),
            tree: PathBuf::from("/nonexistent"),
            config: Arc::new(oci::ImageConfig::parse(config).unwrap()),
            pulled_bytes: None,
        };
        Box::pin(async move { Ok(image) })
    }
}

impl Pods for World {
    fn patch_status(&self, _: &Pod, patch: Value) -> BoxFuture<'static, Result<Pod, ApiError>> {
        let status = patch["status"].clone();
        let ready = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        let states = status["containerStatuses"].as_array().unwrap().iter().map(|container| {
            let state = container["state"].as_object().unwrap().iter().next().unwrap();
            let reason = state.1["reason"].as_str().map_or(String::new(), |reason| format!(":{reason}"));
            format!("{}{reason}", state.0)
        });
        let states: Vec<String> = states.collect();
        let typed = self.change(|pod| {
            let old = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let new = status["conditions"].as_array().unwrap().clone();
            let kept = old.into_iter().filter(|old| !new.iter().any(|new| new["type"] == old["type"]));
            let conditions: Vec<Value> = kept.collect();
            pod["status"] = status.clone();
            pod["status"]["conditions"] = json!([conditions, new].concat());
        });
        self.note(format!("status {} ready={ready} {}", status["phase"].as_str().unwrap(), states.join(",")));
        Box::pin(async move { Ok(typed) })
    }

    fn delete(&self, _: &Pod) -> BoxFuture<'static, Result<(), ApiError>> {
        self.note("delete");
        self.updates.send_modify(|update| update.gone = true);
        Box::pin(async { Ok(()) })
    }
}

impl Objects for World {
    fn config_map(&self, _: &str, _: &str) -> BoxFuture<'_, Result<Option<ConfigMap>, Failure>> {
        Box::pin(async { Ok(None) })
    }

    fn secret(&self, _: &str, _: &str) -> BoxFuture<'_, Result<Option<Secret>, Failure>> {
        Box::pin(async { Ok(None) })
    }

    fn services(&self, _: &str) -> BoxFuture<'_, Vec<Service>> {
        Box::pin(async { Vec::new() })
    }

    fn token(&self, _: &Pod, _: Option<&str>, _: i64) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async { Err(Failure("no tokens".to_owned())) })
    }

    fn changes(&self, _: &str, _: Vec<String>, _: Vec<String>) -> BoxStream<'static, ()> {
        futures::stream::pending().boxed()
    }
}

impl Events for World {
    fn record(&self, _: &Pod, _: Option<&str>, event: Event) {
        if event.warning {
            self.note(format!("event {}: {}", event.reason, event.message));
        }
    }
}

struct Running {
    world: Arc<World>,
    proxies: watch::Sender<Option<Arc<BTreeSet<String>>>>,
    evictions: watch::Sender<Option<Eviction>>,
    done: tokio::task::JoinHandle<()>,
    _scope: Scope,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(world: &Arc<World>, found: Vec<Found>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (proxies, receiver) = watch::channel(Some(Arc::default()));
        let evictions = watch::Sender::new(None);
        let scope = Scope::new("test");
        let start = Start {
            deps: world.deps(dir.path().to_owned()),
            updates: world.updates.subscribe(),
            proxies: receiver,
            evictions: evictions.subscribe(),
            found,
            handles: Handles::default(),
        };
        let done = tokio::spawn(run(start, scope.child("pod")));
        Self { world: Arc::clone(world), proxies, evictions, done, _scope: scope, _dir: dir }
    }

    fn proxy(&self, name: &str) {
        self.proxies.send_replace(Some(Arc::new([name.to_owned()].into())));
    }

    async fn until(&self, line: &str) -> Vec<String> {
        self.world.until(line).await
    }
}

fn one() -> Value {
    json!({"containers": [{"name": "c"}], "terminationGracePeriodSeconds": 30})
}

const READY: &str = "status Running ready=true running";

#[tokio::test(start_paused = true)]
async fn a_pod_becomes_ready_without_a_wait() {
    let world = World::new(one(), true);
    let begun = Instant::now();
    let running = Running::start(&world, Vec::new());
    let journal = running.until(READY).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let steps: Vec<&str> =
        journal.iter().filter(|line| !line.starts_with("status")).map(String::as_str).collect();
    assert_eq!(steps, ["attach", "create c 0", "start c"]);
}

#[tokio::test(start_paused = true)]
async fn the_listening_gate_opens_within_milliseconds() {
    let mut spec = one();
    spec["readinessGates"] = json!([{"conditionType": status::LISTENING}]);
    let world = World::new(spec, true);
    let begun = Instant::now();
    let running = Running::start(&world, Vec::new());
    let journal = running.until(READY).await;
    assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
    assert!(journal.iter().any(|line| line == "status Running ready=false running"), "{journal:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_signalled_after_every_proxy_has_drained_it() {
    let world = World::new(one(), true);
    let running = Running::start(&world, Vec::new());
    running.proxy("a");
    running.until(READY).await;
    let begun = Instant::now();
    world.delete_pod(30);
    tokio::time::sleep(Duration::from_secs(7)).await;
    world.add_condition("b.proxy.gantry.dev/Drained");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!world.journal.lock().unwrap().iter().any(|line| line.starts_with("signal")));
    world.add_condition("a.proxy.gantry.dev/Drained");
    let journal = running.until("delete").await;
    assert_eq!(begun.elapsed().as_secs(), 8);
    let place = |line: &str| {
        journal.iter().position(|known| known == line).unwrap_or_else(|| panic!("{line}: {journal:#?}"))
    };
    assert!(place("signal c 15") < place("status Succeeded ready=false terminated:Completed"));
    assert!(place("detach") < place("delete"));
    running.done.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_says_nothing_is_waited_for_until_the_drain_deadline() {
    let world = World::new(one(), false);
    let running = Running::start(&world, Vec::new());
    running.proxy("a");
    running.until(READY).await;
    let begun = Instant::now();
    world.delete_pod(30);
    running.until("signal c 15").await;
    assert_eq!(begun.elapsed().as_secs(), 20);
    running.until("signal c 9").await;
    assert_eq!(begun.elapsed().as_secs(), 30);
    let journal = running.until("delete").await;
    assert!(journal.contains(&"status Failed ready=false terminated:Error".to_owned()), "{journal:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_is_started_again_ever_more_seldom() {
    let world = World::new(one(), true);
    let running = Running::start(&world, Vec::new());
    let mut starts = Vec::new();
    let begun = Instant::now();
    for attempt in 0..5 {
        running.until(&format!("create c {attempt}")).await;
        starts.push(begun.elapsed().as_secs());
        running.world.wrote.subscribe().wait_for(|_| true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        world.end("c", exit(Some(1), None));
    }
    assert_eq!(starts, [0, 0, 10, 30, 70]);
    let journal = running.until("status Running ready=false waiting:CrashLoopBackOff").await;
    assert!(
        journal.iter().any(|line| line.starts_with("event BackOff: Back-off restarting failed container c"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_is_explained() {
    let mut spec = one();
    spec["restartPolicy"] = json!("Never");
    spec["containers"][0]["command"] = json!(["/missing"]);
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    let journal = running.until("status Failed ready=false terminated:StartError").await;
    assert!(
        journal.contains(&"event Failed: Error: the image has no /missing (no such file)".to_owned()),
        "{journal:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_secret_is_named_and_asked_for_again() {
    let mut spec = one();
    spec["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "s"}}]);
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    let journal = running.until("status Pending ready=false waiting:CreateContainerConfigError").await;
    assert!(journal.contains(&"event Failed: Error: secret \"s\" not found".to_owned()), "{journal:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_unreadies_then_restarts() {
    let mut spec = one();
    spec["containers"][0]["livenessProbe"] =
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 10, "failureThreshold": 3});
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    let begun = Instant::now();
    let journal = running.until("create c 1").await;
    assert_eq!(begun.elapsed().as_secs(), 21, "two periods and the drain");
    let place = |line: &str| {
        journal.iter().position(|known| known == line).unwrap_or_else(|| panic!("{line}: {journal:#?}"))
    };
    assert!(place(READY) < place("status Running ready=false running"));
    assert!(place("status Running ready=false running") < place("signal c 15"));
}

fn told(world: &World) {
    world.change(|pod| {
        pod["status"] = json!({"phase": "Running", "podIP": "10.0.0.2",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "started": true,
                "restartCount": 4, "state": {"running": {"startedAt": "2025-12-31T00:00:00Z"}}}]});
    });
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_taken_over_and_stays_ready() {
    let mut spec = one();
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80}, "failureThreshold": 3});
    let world = World::new(spec, true);
    told(&world);
    world.exits.lock().unwrap().insert("c".to_owned(), watch::channel(None).0);
    let handle = Arc::new(Fake { id: "id".to_owned(), name: "c".to_owned(), world: Arc::clone(&world) });
    let phase = Phase::Running(SystemTime::UNIX_EPOCH);
    let found = Found { container: "c".to_owned(), attempt: 4, stop_signal: 2, phase, handle };
    let running = Running::start(&world, vec![found]);
    let journal = running.until(READY).await;
    assert_eq!(journal, ["attach", READY]);
    world.delete_pod(30);
    running.until("signal c 2").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_made_and_never_started_is_removed_before_it_is_made_again() {
    let world = World::new(one(), true);
    let handle = Arc::new(Fake { id: "id".to_owned(), name: "c".to_owned(), world: Arc::clone(&world) });
    let found =
        Found { container: "c".to_owned(), attempt: 0, stop_signal: 15, phase: Phase::Created, handle };
    let running = Running::start(&world, vec![found]);
    let journal = running.until(READY).await;
    assert_eq!(journal[0], "remove c");
    assert!(journal.contains(&"create c 0".to_owned()), "{journal:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_vanished_has_an_unknown_exit_code() {
    let mut spec = one();
    spec["restartPolicy"] = json!("Never");
    let world = World::new(spec, true);
    told(&world);
    let running = Running::start(&world, Vec::new());
    running.until("status Failed ready=false terminated:ContainerStatusUnknown").await;
    let pod = world.pod.lock().unwrap().clone();
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &pod["status"]["containerStatuses"][0]["restartCount"]),
        (&json!(137), &json!(4))
    );
}

/// After a power cut, or the fifth: it was not the program that failed.
#[tokio::test(start_paused = true)]
async fn what_went_down_with_the_node_starts_again_at_once() {
    let world = World::new(one(), true);
    told(&world);
    let begun = Instant::now();
    let running = Running::start(&world, Vec::new());
    let journal = running.until(READY).await;
    assert!(journal.contains(&"create c 5".to_owned()), "{journal:#?}");
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_nobody_looked_has_its_own_code_and_no_excuse() {
    let mut spec = one();
    spec["restartPolicy"] = json!("Never");
    let world = World::new(spec, true);
    told(&world);
    let handle = Arc::new(Fake { id: "id".to_owned(), name: "c".to_owned(), world: Arc::clone(&world) });
    let phase = Phase::Exited(exit(Some(3), None));
    let found = Found { container: "c".to_owned(), attempt: 4, stop_signal: 15, phase, handle };
    let running = Running::start(&world, vec![found]);
    running.until("status Failed ready=false terminated:Error").await;
    let pod = world.pod.lock().unwrap().clone();
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], json!(3));
    assert!(ended["message"].as_str().is_none_or(str::is_empty), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_ended_is_cleared_away_and_its_object_stays() {
    let mut spec = one();
    spec["restartPolicy"] = json!("OnFailure");
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    running.until(READY).await;
    world.end("c", exit(Some(0), None));
    let journal = running.until("detach").await;
    assert!(journal.contains(&"remove c".to_owned()));
    running.until("status Succeeded ready=false terminated:Completed").await;
    assert!(!world.journal.lock().unwrap().contains(&"delete".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_ends_within_a_second_and_fails_with_the_reason() {
    let world = World::new(one(), true);
    let running = Running::start(&world, Vec::new());
    running.until(READY).await;
    let message = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ".to_owned();
    let begun = Instant::now();
    running.evictions.send_replace(Some(Eviction { message, pressure: false }));
    let lines = running.until("status Failed ready=false terminated:Completed").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(
        lines.iter().any(|line| line.starts_with("event Evicted: Usage of EmptyDir volume")),
        "{lines:#?}"
    );
    let pod = world.updates.borrow().pod.clone();
    let status = pod.status.as_ref().unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(lines.iter().filter(|line| line.starts_with("create")).count(), 1, "it is not started again");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_kubelet_would_reject_fails_before_anything_is_made() {
    let mut spec = one();
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.core_pattern", "value": "|/x"}]});
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    let rejected = "event SysctlForbidden: forbidden sysctl: \"kernel.core_pattern\" not allowlisted";
    running.until(rejected).await;
    let lines = running.until("status Failed ready=false waiting:ContainerCreating").await;
    assert!(!lines.iter().any(|line| line.starts_with("create") || line.starts_with("start")), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn no_grace_period_is_too_long_for_the_clock() {
    let mut spec = one();
    spec["terminationGracePeriodSeconds"] = json!(i64::MAX);
    let world = World::new(spec, true);
    let running = Running::start(&world, Vec::new());
    running.until(READY).await;
    running.evictions.send_replace(Some(Eviction { message: "m".to_owned(), pressure: true }));
    running.until("status Failed ready=false terminated:Completed").await;
}
