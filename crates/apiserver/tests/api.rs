//! The API through its in-process router, with a fixed seed and a clock that stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use apiserver::{Config, Identity, Server};
use axum::body::Body;
use futures::StreamExt;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

struct Api {
    server: Server,
    /// Seconds that the clock was put forward.
    later: Arc<AtomicI64>,
    identity: Identity,
    _folder: tempfile::TempDir,
}

async fn api() -> Api {
    let folder = tempfile::tempdir().unwrap();
    let store = store::Store::open(&folder.path().join("store"), store::Options::default()).unwrap();
    let mut config = Config::new(store);
    config.seed = Some(7);
    let later = Arc::new(AtomicI64::new(0));
    let clock = later.clone();
    config.clock = Arc::new(move || {
        let start: jiff::Timestamp = "2026-11-21T03:15:29Z".parse().unwrap();
        start + jiff::SignedDuration::from_secs(clock.load(Ordering::Relaxed))
    });
    let server = Server::open(config).await.unwrap();
    Api { server, later, identity: Identity::admin(), _folder: folder }
}

impl Api {
    async fn raw(
        &self,
        method: &str,
        path: &str,
        media_type: &str,
        body: impl Into<Body>,
    ) -> http::Response<Body> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .extension(self.identity.clone())
            .body(body.into())
            .unwrap();
        self.server.router().oneshot(request).await.unwrap()
    }

    async fn send(&self, method: &str, path: &str, media_type: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        read(self.raw(method, path, media_type, body).await).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send("GET", path, "", &Value::Null).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("POST", path, "application/json", &body).await
    }

    async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("PUT", path, "application/json", &body).await
    }

    async fn delete(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("DELETE", path, "application/json", &body).await
    }

    async fn apply(&self, path: &str, body: Value) -> (u16, Value) {
        self.send("PATCH", path, "application/apply-patch+yaml", &body).await
    }
}

async fn read(response: http::Response<Body>) -> (u16, Value) {
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// The lines of a watch, as they come.
struct Lines {
    body: axum::body::BodyDataStream,
    buffer: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let piece = self.body.next().await.expect("the watch goes on").unwrap();
            self.buffer.extend_from_slice(&piece);
        }
    }
}

async fn watch(api: &Api, path: &str) -> Lines {
    let response = api.raw("GET", path, "", Body::empty()).await;
    assert_eq!(response.status(), StatusCode::OK);
    Lines { body: response.into_body().into_data_stream(), buffer: Vec::new() }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, labels: Value) -> Value {
    json!({ "metadata": { "name": name, "labels": labels }, "data": { "k": "v" } })
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let api = api().await;
    let (code, made) = api.post(MAPS, map("a", json!({}))).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["creationTimestamp"], "2026-11-21T03:15:29Z");
    assert_eq!(made["metadata"]["namespace"], "default");
    assert_eq!(made["kind"], "ConfigMap");
    let (code, again) = api.post(MAPS, map("a", json!({}))).await;
    assert_eq!((code, again["reason"].as_str()), (409, Some("AlreadyExists")));
    assert_eq!(api.get(&format!("{MAPS}/a")).await, (200, made.clone()));

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let (code, updated) = api.put(&format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!(code, 200);
    assert_ne!(updated["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    changed["data"]["k"] = "x".into();
    let (code, conflict) = api.put(&format!("{MAPS}/a"), changed).await;
    assert_eq!((code, conflict["reason"].as_str()), (409, Some("Conflict")));
    // A write that changes nothing makes no revision.
    let (_, same) = api.put(&format!("{MAPS}/a"), updated.clone()).await;
    assert_eq!(same, updated);

    let (code, status) = api.delete(&format!("{MAPS}/a"), json!({"preconditions": {"uid": "no"}})).await;
    assert_eq!(code, 409, "{status}");
    let (code, status) = api.delete(&format!("{MAPS}/a"), Value::Null).await;
    assert_eq!((code, status["status"].as_str()), (200, Some("Success")));
    let (code, status) = api.get(&format!("{MAPS}/a")).await;
    assert_eq!((code, status["message"].as_str()), (404, Some("configmaps \"a\" not found")));
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_right_status() {
    let api = api().await;
    let cases = [
        ("POST", "/api/v1/namespaces/none/configmaps", "application/json", map("a", json!({})), 404),
        ("POST", MAPS, "application/json", map("Not A Name", json!({})), 422),
        ("POST", MAPS, "text/plain", map("a", json!({})), 415),
        ("POST", MAPS, "application/json", json!({"kind": "Secret", "apiVersion": "v1"}), 400),
        ("POST", MAPS, "application/json", json!({"metadata": {"name": "a"}, "data": {"k": 1}}), 400),
        ("POST", "/api/v1/configmaps", "application/json", map("a", json!({})), 405),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a", "application/json", json!({}), 415),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a", "application/merge-patch+json", json!({}), 404),
        ("DELETE", "/api/v1/namespaces/default", "application/json", Value::Null, 403),
        ("GET", "/api/v1/frogs", "", Value::Null, 404),
        ("GET", "/api/v1/configmaps?labelSelector=a%20b%20c", "", Value::Null, 400),
        ("GET", "/api/v1/pods?fieldSelector=spec.frog%3Dx", "", Value::Null, 400),
    ];
    for (method, path, media_type, body, expected) in cases {
        let (code, status) = api.send(method, path, media_type, &body).await;
        assert_eq!(code, expected, "{method} {path}: {status}");
        assert_eq!(status["kind"], "Status");
    }
    let strict = json!({"metadata": {"name": "a"}, "frog": 1});
    let (code, status) = api.post(&format!("{MAPS}?fieldValidation=Strict"), strict.clone()).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("unknown field \"frog\""), "{status}");
    let warned = api.raw("POST", MAPS, "application/json", strict.to_string()).await;
    assert_eq!(warned.headers()["warning"], "299 - \"unknown field \\\"frog\\\"\"");
    let large = format!("{{\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(4 << 20));
    assert_eq!(api.raw("POST", MAPS, "application/json", large).await.status(), 413);
}

#[tokio::test]
async fn nobody_does_what_the_table_does_not_allow() {
    let mut api = api().await;
    api.identity = Identity::proxy();
    let (code, status) = api.get("/api/v1/namespaces/default/secrets").await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "secrets is forbidden: User \"system:gantry:proxy\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\""
    );
    assert_eq!(api.get("/api/v1/services").await.0, 200);
    api.identity = Identity::anonymous();
    assert_eq!(api.get("/api/v1/services").await.0, 403);
    assert_eq!(api.get("/version").await.0, 200);
    assert_eq!(api.get("/apis").await.0, 403);
}

#[tokio::test]
async fn whoever_acts_as_another_has_that_one_s_rights() {
    let api = api().await;
    let request = |user: &str| {
        let path = "/api/v1/namespaces/default/configmaps";
        let builder = Request::builder().uri(path).header("impersonate-user", user);
        builder.extension(Identity::admin()).body(Body::empty()).unwrap()
    };
    let answer =
        |user: &'static str| async { read(api.server.router().oneshot(request(user)).await.unwrap()).await };
    let (status, body) = answer("nobody").await;
    assert_eq!((status, body["reason"].as_str()), (403, Some("Forbidden")));
    assert!(body["message"].as_str().unwrap().contains("User \"nobody\" cannot list"));
    assert_eq!(answer("system:gantry:controllers").await.0, 200);
}

#[tokio::test]
async fn what_is_not_served_is_not_found_whatever_the_method() {
    let api = api().await;
    for method in ["GET", "POST", "DELETE"] {
        let path = "/api/v1/namespaces/default/frogs";
        assert_eq!(api.send(method, path, "application/json", &json!({})).await.0, 404, "{method}");
    }
}

#[tokio::test]
async fn port_forward_is_asked_of_the_node() {
    let api = api().await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(api.send("POST", "/api/v1/namespaces/default/pods", "application/json", &pod).await.0, 201);
    let (status, body) = api.get("/api/v1/namespaces/default/pods/p/portforward").await;
    assert_eq!((status, body["message"].as_str()), (503, Some("the node's agent is not there yet")));
}

#[tokio::test]
async fn pages_share_one_revision() {
    let api = api().await;
    for name in ["a", "b", "c", "d", "e"] {
        api.post(MAPS, map(name, json!({"odd": name}))).await;
    }
    let (_, first) = api.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    api.delete(&format!("{MAPS}/c"), Value::Null).await;
    api.post(MAPS, map("bb", json!({}))).await;
    let (_, second) = api.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    let names: Vec<_> =
        second["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let (_, selected) = api.get(&format!("{MAPS}?labelSelector=odd%20in%20(a,e)")).await;
    assert_eq!(selected["items"].as_array().unwrap().len(), 2);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(api.get(&exact).await.1["items"].as_array().unwrap().len(), 5);
    let (code, gone) = api.get(&format!("{MAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await;
    assert_eq!((code, gone["items"].as_array().map(Vec::len)), (200, Some(0)));
}

#[tokio::test]
async fn a_watch_tells_everything_once() {
    let api = api().await;
    api.post(MAPS, map("a", json!({"app": "x"}))).await;
    let mut lines = watch(
        &api,
        "/api/v1/configmaps?watch=1&labelSelector=app%3Dx&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
    )
    .await;
    assert_eq!(lines.next().await["type"], "ADDED");
    let end = lines.next().await;
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");

    api.post(MAPS, map("other", json!({}))).await;
    let merge = "application/merge-patch+json";
    api.send("PATCH", &format!("{MAPS}/other"), merge, &json!({"metadata": {"labels": {"app": "x"}}})).await;
    let entered = lines.next().await;
    assert_eq!(
        (entered["type"].as_str(), entered["object"]["metadata"]["name"].as_str()),
        (Some("ADDED"), Some("other"))
    );
    api.send("PATCH", &format!("{MAPS}/other"), merge, &json!({"data": {"k": "w"}})).await;
    assert_eq!(lines.next().await["type"], "MODIFIED");
    let (_, left) =
        api.send("PATCH", &format!("{MAPS}/other"), merge, &json!({"metadata": {"labels": null}})).await;
    let gone = lines.next().await;
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    assert_eq!(gone["object"]["metadata"]["labels"]["app"], "x");
    api.delete(&format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(lines.next().await["type"], "DELETED");

    let mut lines = watch(&api, "/api/v1/namespaces?watch=1&fieldSelector=metadata.name%3Ddefault").await;
    assert_eq!(lines.next().await["object"]["metadata"]["name"], "default");
}

#[tokio::test]
async fn tables_and_partial_metadata_come_through_accept() {
    let api = api().await;
    api.post(MAPS, map("a", json!({}))).await;
    let ask = async |path: &str, accept: &str| {
        let request = Request::get(path)
            .header("accept", accept)
            .extension(Identity::admin())
            .body(Body::empty())
            .unwrap();
        read(api.server.router().oneshot(request).await.unwrap()).await
    };
    let (_, table) = ask(MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io,application/json").await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    let (_, list) = ask(MAPS, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await;
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert_eq!(ask(MAPS, "text/html").await.0, 406);
    let (_, groups) =
        ask("/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").await;
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
}

#[tokio::test]
async fn managers_own_fields() {
    let api = api().await;
    let path = format!("{MAPS}/a");
    let config =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}});
    let (code, made) = api.apply(&format!("{path}?fieldManager=one"), config.clone()).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["metadata"]["managedFields"][0]["manager"], "one");
    let (code, same) = api.apply(&format!("{path}?fieldManager=one"), config.clone()).await;
    assert_eq!((code, &same), (200, &made));
    let mut other = config;
    other["data"]["k"] = "2".into();
    let (code, conflict) = api.apply(&format!("{path}?fieldManager=two"), other.clone()).await;
    assert_eq!(code, 409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.k");
    let (code, dry) = api.apply(&format!("{path}?fieldManager=two&force=true&dryRun=All"), other).await;
    assert_eq!((code, dry["data"]["k"].as_str()), (200, Some("2")));
    assert_eq!(api.get(&path).await.1, made);
}

#[tokio::test]
async fn patches_of_every_type() {
    let api = api().await;
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "a"}, {"name": "b", "image": "b"}]},
    });
    let (code, made) = api.post("/api/v1/namespaces/default/pods", pod).await;
    assert_eq!(code, 201, "{made}");
    let path = "/api/v1/namespaces/default/pods/p";
    let strategic = json!({"spec": {"containers": [{"name": "b", "image": "c"}]}});
    let (code, pod) = api.send("PATCH", path, "application/strategic-merge-patch+json", &strategic).await;
    assert_eq!(code, 200, "{pod}");
    assert_eq!(pod["spec"]["containers"][0]["image"], "a");
    assert_eq!(pod["spec"]["containers"][1]["image"], "c");
    let json_patch = json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]);
    let (code, pod) = api.send("PATCH", path, "application/json-patch+json", &json_patch).await;
    assert_eq!((code, pod["metadata"]["labels"]["a"].as_str()), (200, Some("b")), "{pod}");
    let status = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"x": "y"}}, "spec": {"nodeName": "n"}});
    let (code, pod) =
        api.send("PATCH", &format!("{path}/status"), "application/merge-patch+json", &status).await;
    assert_eq!(code, 200, "{pod}");
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["spec"].get("nodeName"), None);
}

#[tokio::test]
async fn a_pod_is_bound_deleted_gracefully_and_kept_by_finalizers() {
    let api = api().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p", "finalizers": ["example.com/wait"]}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    api.post(pods, pod).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(api.post(&format!("{pods}/p/binding"), binding.clone()).await.0, 201);
    let (code, again) = api.post(&format!("{pods}/p/binding"), binding).await;
    assert_eq!(code, 409);
    assert_eq!(
        again["message"],
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
    );
    let (code, deleting) = api.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 10})).await;
    assert_eq!(code, 200);
    assert_eq!(deleting["metadata"]["deletionTimestamp"], "2026-11-21T03:15:39Z");
    assert_eq!(deleting["metadata"]["deletionGracePeriodSeconds"], 10);
    // Later asks can only shorten the grace.
    let (_, same) = api.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 20})).await;
    assert_eq!(same["metadata"]["deletionGracePeriodSeconds"], 10);
    let (_, now) = api.delete(&format!("{pods}/p"), json!({"gracePeriodSeconds": 0})).await;
    assert_eq!(now["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(api.get(&format!("{pods}/p")).await.0, 200);
    let release = json!({"metadata": {"finalizers": null}});
    let (code, _) = api.send("PATCH", &format!("{pods}/p"), "application/merge-patch+json", &release).await;
    assert_eq!(code, 200);
    assert_eq!(api.get(&format!("{pods}/p")).await.0, 404);
}

#[tokio::test]
async fn a_namespace_ends_when_it_is_finalized() {
    let api = api().await;
    api.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}})).await;
    let (code, ending) = api.delete("/api/v1/namespaces/n", Value::Null).await;
    assert_eq!((code, ending["status"]["phase"].as_str()), (200, Some("Terminating")));
    let (code, refused) = api.post("/api/v1/namespaces/n/configmaps", map("a", json!({}))).await;
    assert_eq!(code, 403);
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut last = ending;
    last["spec"]["finalizers"] = json!([]);
    let (code, _) = api.put("/api/v1/namespaces/n/finalize", last).await;
    assert_eq!(code, 200);
    assert_eq!(api.get("/api/v1/namespaces/n").await.0, 404);
}

#[tokio::test]
async fn no_address_or_port_is_given_twice() {
    let api = Arc::new(api().await);
    let mut set = tokio::task::JoinSet::new();
    for number in 0..24 {
        let api = api.clone();
        set.spawn(async move {
            let service = json!({
                "metadata": {"generateName": "s-"},
                "spec": {"type": "NodePort", "ports": [{"port": 80 + number}]},
            });
            let (code, made) = api.post("/api/v1/namespaces/default/services", service).await;
            assert_eq!(code, 201, "{made}");
            (made["spec"]["clusterIP"].to_string(), made["spec"]["ports"][0]["nodePort"].to_string())
        });
    }
    let given = set.join_all().await;
    let distinct = |values: Vec<&String>| {
        let mut values = values;
        values.sort();
        values.dedup();
        values.len()
    };
    assert_eq!(distinct(given.iter().map(|(address, _)| address).collect()), 24);
    assert_eq!(distinct(given.iter().map(|(_, port)| port).collect()), 24);
    let taken =
        json!({"metadata": {"name": "t"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 1}]}});
    let (code, refused) = api.post("/api/v1/namespaces/default/services", taken).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("already allocated"), "{refused}");
}

#[tokio::test]
async fn replicas_are_written_through_scale() {
    let api = api().await;
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template},
    });
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, made) = api.post(path, deployment).await;
    assert_eq!((code, made["metadata"]["generation"].as_i64()), (201, Some(1)), "{made}");
    let (_, mut scale) = api.get(&format!("{path}/d/scale")).await;
    assert_eq!(
        (scale["spec"]["replicas"].as_i64(), scale["status"]["selector"].as_str()),
        (Some(1), Some("a=b"))
    );
    scale["spec"]["replicas"] = 3.into();
    let (code, scale) = api.put(&format!("{path}/d/scale"), scale).await;
    assert_eq!((code, scale["spec"]["replicas"].as_i64()), (200, Some(3)), "{scale}");
    let (_, deployment) = api.get(&format!("{path}/d")).await;
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["metadata"]["generation"], 2);
    let merge = json!({"spec": {"replicas": -1}});
    let (code, _) =
        api.send("PATCH", &format!("{path}/d/scale"), "application/merge-patch+json", &merge).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn a_second_start_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut revisions = Vec::new();
    for _ in 0..2 {
        let store = store::Store::open(&path, store::Options::default()).unwrap();
        let mut config = Config::new(store.clone());
        config.advertise = Some("10.1.2.3:6443".parse().unwrap());
        revisions.push(Server::open(config).await.unwrap().revision());
        store.close().await;
    }
    assert_eq!(revisions[0], revisions[1]);
}

#[tokio::test]
async fn events_go_after_an_hour() {
    let api = api().await;
    let path = "/api/v1/namespaces/default/events";
    let make = async |name: String| {
        let event = json!({
            "metadata": {"name": name},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "reason": "R",
        });
        let (code, made) = api.post(path, event).await;
        assert_eq!(code, 201, "{made}");
    };
    for number in 0..5 {
        make(format!("old{number}")).await;
    }
    api.later.store(3601, Ordering::Relaxed);
    for number in 0..64 {
        make(format!("new{number}")).await;
    }
    let (_, list) = api.get(path).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 64);
}

#[tokio::test]
async fn a_typed_client_works_in_process() {
    use k8s_openapi::api::core::v1::ConfigMap;
    let api = api().await;
    let client = api.server.client(Identity::controllers());
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(client, "default");
    let made = maps.create(&Default::default(), &serde_json::from_value(map("a", json!({}))).unwrap()).await;
    assert_eq!(made.unwrap().metadata.name.as_deref(), Some("a"));
    assert_eq!(maps.list(&Default::default()).await.unwrap().items.len(), 1);
    let error = maps.get("b").await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.code == 404));
}
