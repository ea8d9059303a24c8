//! What somebody who may write objects can do to the server by them: each is refused, and the server goes on.

use apiserver::{Config, Identity, Server};
use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

struct Api {
    server: Server,
    _folder: tempfile::TempDir,
}

async fn api(quota_bytes: u64) -> Api {
    let folder = tempfile::tempdir().unwrap();
    let options = store::Options { quota_bytes, ..store::Options::default() };
    let store = store::Store::open(&folder.path().join("store"), options).unwrap();
    Api { server: Server::open(Config::new(store)).await.unwrap(), _folder: folder }
}

impl Api {
    async fn send(&self, method: &str, path: &str, media_type: &str, body: impl Into<Body>) -> (u16, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .extension(Identity::admin())
            .body(body.into())
            .unwrap();
        let response: Response<Body> = self.server.router().oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn make(&self, path: &str, object: Value) -> (u16, Value) {
        self.send("POST", path, JSON, object.to_string()).await
    }
}

fn map(name: &str, bytes: usize) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "x".repeat(bytes)}})
}

#[tokio::test]
async fn a_patch_whose_copies_double_the_depth_is_refused() {
    let api = api(u64::MAX).await;
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let revision = json!({"metadata": {"name": "r"}, "revision": 1, "data": {"a": {}}});
    assert_eq!(api.make(revisions, revision).await.0, 201);
    let double = |power: u32| {
        let path = format!("/data/a{}", "/b".repeat(1 << power));
        json!({"op": "copy", "from": "/data/a", "path": path})
    };
    let patch: Value = (0..12).map(double).collect();
    let (code, _) =
        api.send("PATCH", &format!("{revisions}/r"), "application/json-patch+json", patch.to_string()).await;
    assert_eq!(code, 422);
}

#[tokio::test]
async fn an_object_too_deep_to_be_read_back_is_refused_by_every_write() {
    let api = api(u64::MAX).await;
    let revisions = "/apis/apps/v1/namespaces/default/controllerrevisions";
    let nested = |depth: usize| format!("{}{}", "{\"a\":".repeat(depth) + "1", "}".repeat(depth));
    let body = |depth: usize| {
        let data = nested(depth);
        format!(
            r#"{{"apiVersion":"apps/v1","kind":"ControllerRevision","metadata":{{"name":"r"}},"revision":1,"data":{data}}}"#
        )
    };
    assert_eq!(api.send("POST", revisions, JSON, body(110)).await.0, 422);
    assert_eq!(api.send("POST", revisions, JSON, body(90)).await.0, 201);
    let path = format!("{revisions}/r");
    assert_eq!(api.send("PUT", &path, JSON, body(110)).await.0, 422);
    let apply = format!("{path}?fieldManager=t&force=true");
    assert_eq!(api.send("PATCH", &apply, "application/apply-patch+yaml", body(110)).await.0, 422);
    let merge = format!(r#"{{"data":{}}}"#, nested(110));
    assert_eq!(api.send("PATCH", &path, "application/merge-patch+json", merge).await.0, 422);
    assert_eq!(api.send("GET", &path, JSON, "").await.0, 200, "what is stored is read");
}

#[tokio::test]
async fn yaml_of_many_brackets_or_aliases_is_refused_at_once() {
    let api = api(u64::MAX).await;
    let brackets = "[".repeat(200_000);
    assert_eq!(api.send("POST", MAPS, "application/yaml", brackets.clone()).await.0, 400);
    let apply = format!("{MAPS}/a?fieldManager=t");
    assert_eq!(api.send("PATCH", &apply, "application/apply-patch+yaml", brackets).await.0, 400);
    let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..10 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(10)));
    }
    assert_eq!(api.send("POST", MAPS, "application/yaml", bomb).await.0, 400);
}

#[tokio::test]
async fn a_full_store_refuses_what_grows_and_takes_what_ends() {
    // What every cluster has takes some of it.
    let api = api(40_000).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p", "finalizers": ["example.com/f"]},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(api.make(pods, pod).await.0, 201);
    let mut count = 0;
    let refused = loop {
        let (code, answer) = api.make(MAPS, map(&format!("m{count}"), 5000)).await;
        if code != 201 {
            break (code, answer);
        }
        count += 1;
        assert!(count < 9, "there is no end");
    };
    assert_eq!((refused.0, refused.1["reason"].as_str()), (403, Some("Forbidden")));
    let message = refused.1["message"].as_str().unwrap();
    assert!(message.contains("exceeded quota") && message.contains("delete objects"), "{message}");

    let status = json!({"status": {"message": "x".repeat(6000)}}).to_string();
    let merge = "application/merge-patch+json";
    assert_eq!(api.send("PATCH", &format!("{pods}/p/status"), merge, status).await.0, 200);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    assert_eq!(api.make(leases, json!({"metadata": {"name": "l"}})).await.0, 201);
    assert_eq!(api.make(MAPS, map("more", 5000)).await.0, 403);
    // A deletion that has to wait is written too, and so is its end.
    let (code, deleted) = api.send("DELETE", &format!("{pods}/p?gracePeriodSeconds=0"), JSON, "").await;
    assert_eq!((code, deleted["metadata"]["deletionTimestamp"].is_string()), (200, true));
    let freed = json!({"metadata": {"finalizers": null}}).to_string();
    assert_eq!(api.send("PATCH", &format!("{pods}/p"), merge, freed).await.0, 200);
    assert_eq!(api.send("GET", &format!("{pods}/p"), JSON, "").await.0, 404);
    assert_eq!(api.send("DELETE", &format!("{MAPS}/m0"), JSON, "").await.0, 200);
    assert_eq!(api.make(MAPS, map("more", 5000)).await.0, 201, "there is room again");
}
