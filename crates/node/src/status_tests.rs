use super::*;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::observed::{Port, Run, Terminal};
use crate::ports::Sandbox;

fn clock() -> Clock {
    Clock { now: Instant::now(), wall: "2026-01-01T00:00:00Z".parse().unwrap() }
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3}, "spec": spec}),
    )
    .unwrap()
}

fn observed(clock: Clock) -> Observed {
    let mut observed = Observed::new(["c".to_owned()].into_iter());
    observed.sandbox = Step::Done(Sandbox { ip: "10.0.0.2".parse().unwrap(), netns: None, first_id: None });
    observed.volumes = Step::Done(());
    observed.containers.get_mut("c").unwrap().state = State::Running(Run {
        attempt: 0,
        id: "id".to_owned(),
        since: clock.now,
        started_at: clock.wall,
        started: true,
        ready: true,
        unhealthy: None,
    });
    observed
}

fn ended(code: i32) -> State {
    State::Exited(Ended {
        attempt: 2,
        id: "id".to_owned(),
        code,
        signal: None,
        reason: "Error".to_owned(),
        message: "last words".to_owned(),
        started_at: None,
        finished_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    })
}

fn condition<'a>(status: &'a Status, kind: &str) -> &'a Value {
    let list = status.patch["status"]["conditions"].as_array().unwrap();
    list.iter().find(|condition| condition["type"] == kind).unwrap()
}

#[test]
fn a_running_pod_is_ready() {
    let clock = clock();
    let status = of(&pod(json!({"containers": [{"name": "c"}]})), &observed(clock), "192.0.2.1", clock);
    let body = &status.patch["status"];
    assert!(status.ready && !status.ended);
    assert_eq!(
        (&body["phase"], &body["podIP"], &body["hostIP"]),
        (&json!("Running"), &json!("10.0.0.2"), &json!("192.0.2.1"))
    );
    assert_eq!(body["observedGeneration"], 3);
    assert_eq!(body["containerStatuses"][0]["containerID"], "gantry://id");
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&status, kind)["status"], "True", "{kind}");
    }
    assert!(condition(&status, "Ready")["reason"].is_null(), "an old reason is taken off");
}

#[test]
fn readiness_gates_are_asked() {
    let clock = clock();
    let pod = pod(json!({"containers": [{"name": "c"}], "readinessGates": [{"conditionType": LISTENING}]}));
    let mut observed = observed(clock);
    let status = of(&pod, &observed, "", clock);
    assert_eq!(condition(&status, "Ready")["reason"], "ReadinessGatesNotReady");
    assert_eq!(condition(&status, LISTENING)["reason"], "NotListening");
    let port = |address: &str| Port {
        port: 8080,
        protocol: "TCP".to_owned(),
        address: address.parse().unwrap(),
        http: true,
        loopback: address == "127.0.0.1",
    };
    observed.gate = Gate::LoopbackOnly(vec![port("127.0.0.1")]);
    let status = of(&pod, &observed, "", clock);
    assert_eq!(condition(&status, LISTENING)["reason"], "LoopbackOnly");
    assert!(condition(&status, LISTENING)["message"].as_str().unwrap().contains("127.0.0.1:8080"));
    observed.gate = Gate::Open(vec![port("::")]);
    let status = of(&pod, &observed, "", clock);
    assert!(status.ready);
    let annotation = &status.patch["metadata"]["annotations"][LISTENING_ANNOTATION];
    assert_eq!(annotation, r#"[{"port":8080,"protocol":"TCP","address":"::","http":true}]"#);
}

#[test]
fn what_waits_says_why() {
    let clock = clock();
    let subject = pod(json!({"containers": [{"name": "c", "image": "x"}]}));
    let mut observed = observed(clock);
    let container = observed.containers.get_mut("c").unwrap();
    container.state = ended(1);
    container.backoff = Backoff::after(2);
    container.backoff.fail(clock.now, Duration::ZERO);
    let status = of(&subject, &observed, "", clock);
    let shown = &status.patch["status"]["containerStatuses"][0];
    assert_eq!(shown["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        shown["state"]["waiting"]["message"],
        "back-off 20s restarting failed container=c pod=p_ns(u)"
    );
    assert_eq!(shown["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!((&shown["restartCount"], &status.patch["status"]["phase"]), (&json!(2), &json!("Running")));
    let container = observed.containers.get_mut("c").unwrap();
    container.state = ended(0);
    let status = of(&subject, &observed, "", clock);
    let message = &status.patch["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert!(message.as_str().unwrap().contains("gantry run"), "{message}");
    let container = observed.containers.get_mut("c").unwrap();
    container.state = State::Waiting;
    container.backoff = Backoff::default();
    container.image = Step::Failed(crate::observed::Trouble {
        reason: "ErrImagePull".to_owned(),
        message: "no such image".to_owned(),
        at: clock.now,
        retry_at: clock.now,
    });
    for (seconds, reason) in [(0, "ErrImagePull"), (3, "ImagePullBackOff")] {
        let clock = Clock { now: clock.now + Duration::from_secs(seconds), ..clock };
        let status = of(&subject, &observed, "", clock);
        let waiting = &status.patch["status"]["containerStatuses"][0]["state"]["waiting"];
        assert_eq!(waiting["reason"], reason);
        assert_eq!(status.patch["status"]["phase"], "Pending");
    }
}

#[test]
fn an_ended_pod_has_its_phase() {
    let clock = clock();
    let subject = pod(json!({"restartPolicy": "Never", "containers": [{"name": "c"}]}));
    let mut observed = observed(clock);
    for (code, phase, reason) in [(0, "Succeeded", "PodCompleted"), (3, "Failed", "PodFailed")] {
        observed.containers.get_mut("c").unwrap().state = ended(code);
        observed.terminal =
            Some(Terminal { succeeded: code == 0, reason: None, message: None, evicted: None });
        let status = of(&subject, &observed, "", clock);
        assert!(status.ended && !status.ready);
        assert_eq!(status.patch["status"]["phase"], phase);
        assert_eq!(condition(&status, "Ready")["reason"], reason);
        let shown = &status.patch["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!((&shown["exitCode"], &shown["message"]), (&json!(code), &json!("last words")));
    }
}

#[test]
fn transition_times_stay_until_the_status_changes() {
    let clock = clock();
    let mut subject = pod(json!({"containers": [{"name": "c"}]}));
    subject.status = serde_json::from_value(json!({"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"},
        {"type": "a.proxy.gantry.dev/Drained", "status": "True"}]}))
    .unwrap();
    let mut observed = observed(clock);
    let status = of(&subject, &observed, "", clock);
    assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2025-01-01T00:00:00Z");
    let names = status.patch["status"]["conditions"].as_array().unwrap();
    assert!(
        !names.iter().any(|c| c["type"].as_str().unwrap().contains("proxy")),
        "others' conditions are theirs"
    );
    observed.containers.get_mut("c").unwrap().run_mut().unwrap().ready = false;
    let status = of(&subject, &observed, "", clock);
    assert_eq!(condition(&status, "Ready")["lastTransitionTime"], "2026-01-01T00:00:00Z");
    assert_eq!(condition(&status, "Ready")["message"], "containers with unready status: [c]");
}
