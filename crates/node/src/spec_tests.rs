use super::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn image(config: Value) -> Image {
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "config": config});
    Image {
        id: "localhost/x@sha256:0".to_owned(),
        tree: PathBuf::from("/nonexistent"),
        config: Arc::new(oci::ImageConfig::parse(config.to_string().as_bytes()).unwrap()),
        pulled_bytes: None,
    }
}

fn spec_of(container: Value, config: Value) -> Result<Spec, String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web-1", "namespace": "ns", "uid": "u1"},
        "spec": {"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "m"}},
            {"name": "h", "hostPath": {"path": "/srv"}}]}
    }))
    .unwrap();
    let image = image(config);
    let sandbox = Sandbox {
        ip: "10.0.0.2".parse().unwrap(),
        netns: Some(PathBuf::from("/run/netns/u1")),
        first_id: Some(7 << 16),
    };
    of(&Input {
        pod: &pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        attempt: 2,
        image: &image,
        sandbox: &sandbox,
        sources: &env::Sources::default(),
        pod_dir: Path::new("/s/pods/u1"),
        log_dir: Path::new("/s/logs/c"),
        memory_bytes: 1 << 30,
    })
    .map_err(|error| error.to_string())
}

#[test]
fn commands_are_merged_as_kubernetes_merges_them() {
    let config = json!({"Entrypoint": ["/entry"], "Cmd": ["a"]});
    for (container, expected) in [
        (json!({"name": "c"}), vec!["/entry", "a"]),
        (json!({"name": "c", "args": ["$(X)"], "env": [{"name": "X", "value": "b"}]}), vec!["/entry", "b"]),
        (json!({"name": "c", "command": ["/own"]}), vec!["/own"]),
        (json!({"name": "c", "command": ["/own"], "args": ["z"]}), vec!["/own", "z"]),
    ] {
        assert_eq!(spec_of(container.clone(), config.clone()).unwrap().args, expected, "{container}");
    }
    assert!(spec_of(json!({"name": "c"}), json!({})).unwrap_err().contains("no command specified"));
}

#[test]
fn open_files_are_those_of_containerd_not_of_the_daemon() {
    let spec = spec_of(json!({"name": "c", "command": ["/x"]}), json!({})).unwrap();
    let [limit] = spec.rlimits.as_slice() else { panic!("{:?}", spec.rlimits) };
    assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1024, 524_288));
}

#[test]
fn security_and_limits_reach_the_runtime() {
    let spec = spec_of(
        json!({"name": "c", "securityContext": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "runAsUser": 7},
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
            "volumeMounts": [{"name": "v", "mountPath": "/data"}, {"name": "c", "mountPath": "/etc/conf"}]}),
        json!({"Entrypoint": ["/x"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/w", "StopSignal": "SIGINT"}),
    )
    .unwrap();
    assert_eq!(spec.rootfs.access, Access::ReadOnly);
    assert!(spec.no_new_privileges && spec.seccomp == Seccomp::RuntimeDefault && !spec.privileged);
    assert_eq!(spec.capabilities.drop, ["ALL"]);
    assert_eq!((spec.user.uid, spec.cwd.to_str()), (7, Some("/w")));
    assert_eq!(spec.resources.cpu_limit_milli, Some(500));
    assert_eq!(spec.resources.memory_limit_bytes, Some(64 << 20));
    assert_eq!(spec.annotations[annotation::STOP_SIGNAL], "2");
    assert_eq!(spec.log.path, Path::new("/s/logs/c/2.log"));
    let find = |target: &str| spec.mounts.iter().find(|mount| mount.target == Path::new(target)).unwrap();
    assert!(!find("/data").read_only && find("/etc/conf").read_only);
    assert_eq!(find("/dev/termination-log").source, Path::new("/s/pods/u1/containers/c.2.termination"));
    assert!(spec.env.contains(&("PATH".to_owned(), "/bin".to_owned())));
    assert!(spec.env.contains(&("HOSTNAME".to_owned(), "web-1".to_owned())));
    assert!(spec.id.len() == 32 && spec.id == id("u1", "c", 2));
}

#[test]
fn sub_paths_are_left_to_the_runtime_and_only_the_hosts_own_files_keep_their_powers() {
    let config = json!({"Entrypoint": ["/x"]});
    let spec = spec_of(
        json!({"name": "c", "env": [{"name": "WHO", "value": "me"}], "volumeMounts": [
            {"name": "v", "mountPath": "/data", "subPath": "a/b"}, {"name": "v", "mountPath": "/own", "subPathExpr": "$(WHO)"},
            {"name": "c", "mountPath": "/etc/conf"}, {"name": "h", "mountPath": "/srv"}]}),
        config.clone(),
    )
    .unwrap();
    let find = |target: &str| spec.mounts.iter().find(|mount| mount.target == Path::new(target)).unwrap();
    assert_eq!(find("/data").source, Path::new("/s/pods/u1/volumes/v"));
    assert_eq!(find("/data").sub_path.as_deref(), Some(Path::new("a/b")));
    assert_eq!(find("/own").sub_path.as_deref(), Some(Path::new("me")));
    let powerful: Vec<&Path> =
        spec.mounts.iter().filter(|mount| !mount.inert).map(|mount| mount.target.as_path()).collect();
    assert_eq!(powerful, [Path::new("/srv")]);
    for outside in ["../x", "/etc"] {
        let mounts = json!([{"name": "v", "mountPath": "/data", "subPath": outside}]);
        assert!(spec_of(json!({"name": "c", "volumeMounts": mounts}), config.clone()).is_err(), "{outside}");
    }
}

#[test]
fn users_of_its_own_are_not_silently_left_out() {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"hostUsers": false, "containers": [{"name": "c"}]}}))
    .unwrap();
    let image = image(json!({"Entrypoint": ["/x"]}));
    let of = |sandbox: Sandbox| {
        of(&Input {
            pod: &pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            attempt: 0,
            image: &image,
            sandbox: &sandbox,
            sources: &env::Sources::default(),
            pod_dir: Path::new("/s/pods/u"),
            log_dir: Path::new("/s/logs/c"),
            memory_bytes: 1 << 30,
        })
    };
    let ip = "10.0.0.2".parse().unwrap();
    assert!(matches!(of(Sandbox { ip, netns: None, first_id: None }), Err(Error::HostUsers)));
    let netns = Some(PathBuf::from("/n"));
    assert_eq!(
        of(Sandbox { ip, netns, first_id: Some(1 << 20) }).unwrap().users,
        Users::Own { first: 1 << 20 }
    );
}

/// CVE-2026-53488: what an image says of itself chooses no path, hook or logger of the host's.
#[test]
fn labels_choose_nothing() {
    let plain = spec_of(json!({"name": "c"}), json!({"Entrypoint": ["/x"]})).unwrap();
    let labels = json!({"io.kubernetes.cri-o.LinkLogs": "../../etc", "io.containerd.runc.v2.hook": "/bin/sh",
        "org.criu.config": "/x", "run.oci.hooks.stderr": "/etc/passwd", "com.docker.log-driver": "binary:///bin/sh"});
    let hostile = json!({"Entrypoint": ["/x"], "Labels": labels, "Volumes": {"/etc": {}, "../../x": {}},
        "OnBuild": ["RUN x"], "Shell": ["/bin/evil"]});
    assert_eq!(
        serde_json::to_value(spec_of(json!({"name": "c"}), hostile).unwrap()).unwrap(),
        serde_json::to_value(plain).unwrap()
    );
}

#[test]
fn signals_have_numbers() {
    for (name, number) in [
        ("SIGTERM", Some(15)),
        ("quit", Some(3)),
        ("9", Some(9)),
        ("SIGRTMIN+3", Some(37)),
        ("SIGNO", None),
        ("0", None),
    ] {
        assert_eq!(signal(name), number, "{name}");
    }
}
