//! Tables: a Pod, what was observed, what is to be done.

use super::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::backoff::Backoff;
use crate::observed::{Published, Run, Trouble, Unhealthy};
use crate::ports::{Image, Sandbox};

const WALL: &str = "2026-01-01T00:00:00Z";

fn clock() -> Clock {
    Clock { now: Instant::now(), wall: WALL.parse().unwrap() }
}

fn pod(spec: Value) -> Pod {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
    if pod["spec"]["containers"].is_null() {
        pod["spec"]["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(pod).unwrap()
}

fn deleted(mut pod: Pod, in_seconds: i64, grace: i64) -> Pod {
    let wall: Timestamp = WALL.parse().unwrap();
    let at = wall.checked_add(jiff::SignedDuration::from_secs(in_seconds)).unwrap();
    pod.metadata.deletion_timestamp = Some(at.into());
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

fn image() -> Step<Arc<Image>> {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    Step::Done(Arc::new(Image {
        id: "localhost/x@sha256:0".to_owned(),
        tree: PathBuf::from("/"),
        config: Arc::new(oci::ImageConfig::parse(config).unwrap()),
        pulled_bytes: None,
    }))
}

/// A Pod whose network, volumes and images are there.
fn prepared(pod: &Pod) -> Observed {
    let spec = pod.spec.as_ref().unwrap();
    let names = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.name.clone());
    let mut observed = Observed::new(names);
    observed.sandbox = Step::Done(Sandbox { ip: "10.0.0.2".parse().unwrap(), netns: None, first_id: None });
    observed.volumes = Step::Done(());
    observed.proxies = Some(Arc::new(BTreeSet::new()));
    for container in observed.containers.values_mut() {
        container.image = image();
    }
    observed
}

fn run(clock: Clock) -> Run {
    Run {
        attempt: 0,
        id: "id".to_owned(),
        since: clock.now,
        started_at: clock.wall,
        started: true,
        ready: true,
        unhealthy: None,
    }
}

fn exited(code: i32, attempt: u32) -> State {
    State::Exited(Ended {
        attempt,
        id: "id".to_owned(),
        code,
        signal: None,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at: None,
        finished_at: WALL.parse().unwrap(),
    })
}

fn set(observed: &mut Observed, name: &str, state: State) {
    observed.containers.get_mut(name).unwrap().state = state;
}

fn start(container: &str, attempt: u32) -> Action {
    Action::Start { container: container.to_owned(), attempt }
}

#[test]
fn everything_that_can_be_prepared_is_prepared_at_once() {
    let pod = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let observed = Observed::new(["a".to_owned(), "b".to_owned()].into_iter());
    let actions = plan(&pod, &observed, clock());
    let pull = |name: &str| Action::Pull(name.to_owned());
    assert_eq!(actions, [Action::Attach, Action::Mount, pull("a"), pull("b")]);
    assert_eq!(plan(&pod, &prepared(&pod), clock()), [start("a", 0), start("b", 0)]);
}

#[test]
fn init_containers_come_first_and_one_by_one() {
    let pod = pod(
        json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}]}),
    );
    let clock = clock();
    let mut observed = prepared(&pod);
    assert_eq!(plan(&pod, &observed, clock), [start("i", 0)]);
    set(&mut observed, "i", State::Running(run(clock)));
    assert_eq!(plan(&pod, &observed, clock), []);
    set(&mut observed, "i", exited(0, 0));
    assert_eq!(plan(&pod, &observed, clock), [start("s", 0)]);
    set(&mut observed, "s", State::Running(Run { started: false, ..run(clock) }));
    assert_eq!(plan(&pod, &observed, clock), []);
    set(&mut observed, "s", State::Running(run(clock)));
    assert_eq!(plan(&pod, &observed, clock), [start("j", 0)]);
    set(&mut observed, "j", exited(0, 0));
    assert_eq!(plan(&pod, &observed, clock), [start("c", 0)]);
    set(&mut observed, "c", State::Running(run(clock)));
    set(&mut observed, "s", exited(0, 0));
    assert_eq!(plan(&pod, &observed, clock), [start("s", 1)], "a sidecar is kept running");
}

#[test]
fn restart_policies_decide() {
    for (policy, init, code, expected) in [
        ("Always", false, 0, "restart"),
        ("Always", false, 1, "restart"),
        ("OnFailure", false, 0, "succeeded"),
        ("OnFailure", false, 137, "restart"),
        ("Never", false, 0, "succeeded"),
        ("Never", false, 1, "failed"),
        ("Always", true, 1, "restart"),
        ("Never", true, 1, "failed"),
    ] {
        let init_containers = if init { json!([{"name": "i"}]) } else { json!([]) };
        let pod = pod(json!({"restartPolicy": policy, "initContainers": init_containers}));
        let mut observed = prepared(&pod);
        set(&mut observed, if init { "i" } else { "c" }, exited(code, 4));
        let found = match &plan(&pod, &observed, clock())[..] {
            [Action::Start { attempt: 5, .. }] => "restart",
            [Action::Finish(terminal)] if terminal.succeeded => "succeeded",
            [Action::Finish(_)] => "failed",
            other => panic!("{policy} {init} {code}: {other:?}"),
        };
        assert_eq!(found, expected, "{policy} init={init} {code}");
    }
}

#[test]
fn failures_wait_for_their_back_off() {
    let pod = pod(json!({}));
    let clock = clock();
    let mut observed = prepared(&pod);
    set(&mut observed, "c", exited(1, 1));
    let container = observed.containers.get_mut("c").unwrap();
    container.backoff = Backoff::after(1);
    container.backoff.fail(clock.now, Duration::ZERO);
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(clock.now + Duration::from_secs(10))]);
    let later = Clock { now: clock.now + Duration::from_secs(10), ..clock };
    assert_eq!(plan(&pod, &observed, later), [start("c", 2)]);
    let container = observed.containers.get_mut("c").unwrap();
    let retry_at = later.now + Duration::from_secs(3);
    container.image =
        Step::Failed(Trouble { reason: String::new(), message: String::new(), at: later.now, retry_at });
    assert_eq!(plan(&pod, &observed, later), [Action::Wake(retry_at)]);
}

#[test]
fn a_deleted_pod_is_drained_before_it_is_signalled() {
    let clock = clock();
    let at = |seconds| clock.now + Duration::from_secs(seconds);
    let pod = deleted(pod(json!({})), 30, 30);
    let mut observed = prepared(&pod);
    set(&mut observed, "c", State::Running(run(clock)));
    let signal = Action::Signal { container: "c".to_owned(), kill_at: at(30) };
    let wait = Action::Wake(at(20));
    assert_eq!(plan(&pod, &observed, clock), std::slice::from_ref(&signal), "nobody to wait for");
    observed.proxies = None;
    assert_eq!(plan(&pod, &observed, clock), std::slice::from_ref(&wait), "the proxies are not known yet");
    observed.proxies = Some(Arc::new(["a".to_owned()].into()));
    assert_eq!(plan(&pod, &observed, clock), [wait], "a has not said anything");
    let mut drained = pod.clone();
    drained.status = serde_json::from_value(json!({"conditions": [
        {"type": "a.proxy.gantry.dev/Drained", "status": "True", "reason": "Idle"}]}))
    .unwrap();
    assert_eq!(plan(&drained, &observed, clock), [signal]);
    let late = Clock { now: at(20), wall: "2026-01-01T00:00:20Z".parse().unwrap() };
    assert_eq!(plan(&pod, &observed, late), [Action::Signal { container: "c".to_owned(), kill_at: at(30) }]);
    let now = deleted(pod, 0, 0);
    assert_eq!(plan(&now, &observed, clock), [Action::Kill("c".to_owned())], "grace 0 waits for nobody");
}

#[test]
fn the_end_goes_step_by_step() {
    let clock = clock();
    let at = |seconds| clock.now + Duration::from_secs(seconds);
    let spec = json!({"containers": [{"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}]});
    let pod = deleted(pod(spec), 30, 30);
    let mut observed = prepared(&pod);
    let stopping = |stop| State::Stopping { run: run(clock), stop };
    set(&mut observed, "c", State::Running(run(clock)));
    assert_eq!(
        plan(&pod, &observed, clock),
        [Action::PreStop { container: "c".to_owned(), kill_at: at(30) }]
    );
    set(&mut observed, "c", stopping(Stop::PreStop { kill_at: at(30) }));
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(at(30))]);
    set(&mut observed, "c", stopping(Stop::Signal { kill_at: at(30) }));
    assert_eq!(plan(&pod, &observed, clock), [Action::Signal { container: "c".to_owned(), kill_at: at(30) }]);
    set(&mut observed, "c", stopping(Stop::Signalled { kill_at: at(30) }));
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(at(30))]);
    let late = Clock { now: at(30), wall: "2026-01-01T00:00:30Z".parse().unwrap() };
    assert_eq!(plan(&pod, &observed, late), [Action::Kill("c".to_owned())]);
    set(&mut observed, "c", stopping(Stop::Killed { again_at: at(40) }));
    assert_eq!(plan(&pod, &observed, late), [Action::Wake(at(40))]);
    let later = Clock { now: at(40), wall: "2026-01-01T00:00:40Z".parse().unwrap() };
    assert_eq!(plan(&pod, &observed, later), [Action::Kill("c".to_owned())], "again");
    set(&mut observed, "c", exited(137, 0));
    assert_eq!(plan(&pod, &observed, late), [Action::TearDown]);
    observed.teardown = Step::Done(());
    assert_eq!(plan(&pod, &observed, late), [], "the last status first");
    observed.published = Published { unready_since: None, ended: true };
    assert_eq!(plan(&pod, &observed, late), [Action::Delete]);
    observed.deletion = Step::Done(());
    assert_eq!(plan(&pod, &observed, late), []);
    observed.gone = true;
    assert_eq!(plan(&pod, &observed, late), [Action::End]);
}

#[test]
fn an_unhealthy_container_is_unready_before_it_is_ended() {
    let clock = clock();
    let pod = pod(json!({}));
    let mut observed = prepared(&pod);
    let unhealthy = Unhealthy { message: "failed liveness probe".to_owned(), at: clock.now, grace: None };
    set(&mut observed, "c", State::Running(Run { unhealthy: Some(unhealthy), ..run(clock) }));
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(clock.now + LIVENESS_DRAIN_LONGEST)]);
    observed.published.unready_since = Some(clock.now);
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(clock.now + LIVENESS_DRAIN)]);
    let later = Clock { now: clock.now + LIVENESS_DRAIN, ..clock };
    let kill_at = later.now + Duration::from_secs(30);
    assert_eq!(plan(&pod, &observed, later), [Action::Signal { container: "c".to_owned(), kill_at }]);
}

#[test]
fn a_pod_that_vanished_is_ended_and_forgotten() {
    let clock = clock();
    let pod = pod(json!({"terminationGracePeriodSeconds": 4}));
    let mut observed = prepared(&pod);
    observed.gone = true;
    set(&mut observed, "c", State::Running(run(clock)));
    let kill_at = clock.now + Duration::from_secs(4);
    assert_eq!(plan(&pod, &observed, clock), [Action::Signal { container: "c".to_owned(), kill_at }]);
    set(&mut observed, "c", exited(0, 0));
    assert_eq!(plan(&pod, &observed, clock), [Action::TearDown]);
}

#[test]
fn sidecars_end_last_and_a_finished_pod_is_cleared() {
    let clock = clock();
    let pod = deleted(pod(json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}]})), 30, 30);
    let mut observed = prepared(&pod);
    set(&mut observed, "s", State::Running(run(clock)));
    set(&mut observed, "c", State::Running(run(clock)));
    let kill_at = clock.now + Duration::from_secs(30);
    let signal = |name: &str| Action::Signal { container: name.to_owned(), kill_at };
    assert_eq!(plan(&pod, &observed, clock), [signal("c")]);
    set(&mut observed, "c", exited(0, 0));
    assert_eq!(plan(&pod, &observed, clock), [signal("s")]);
}

#[test]
fn the_active_deadline_ends_a_pod() {
    let clock = clock();
    let mut pod = pod(json!({"activeDeadlineSeconds": 5}));
    pod.status = serde_json::from_value(json!({"startTime": "2025-12-31T23:59:57Z"})).unwrap();
    let mut observed = prepared(&pod);
    set(&mut observed, "c", State::Running(run(clock)));
    assert_eq!(plan(&pod, &observed, clock), [Action::Wake(clock.now + Duration::from_secs(2))]);
    let late = Clock { wall: "2026-01-01T00:00:02Z".parse().unwrap(), ..clock };
    let [Action::Finish(terminal)] = &plan(&pod, &observed, late)[..] else { panic!("not finished") };
    assert_eq!(terminal.reason.as_deref(), Some("DeadlineExceeded"));
}
