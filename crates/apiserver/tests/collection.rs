//! The deletion of a collection.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use apiserver::{Config, Identity, Server};
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::StorageBackend;
use tokio::sync::watch;
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A disk in memory, on which nothing becomes durable while it is held.
#[derive(Clone, Debug, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    held: Arc<(Mutex<bool>, Condvar)>,
}

impl Disk {
    fn hold(&self, held: bool) {
        *self.held.0.lock().unwrap() = held;
        self.held.1.notify_all();
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        drop(self.held.1.wait_while(self.held.0.lock().unwrap(), |held| *held).unwrap());
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

async fn send(server: Server, method: &str, path: &str, body: String) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.extension(Identity::admin()).body(Body::from(body)).unwrap();
    let response = server.router().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

async fn make(server: &Server, name: &str, finalizers: &[&str]) {
    let object = json!({"metadata": {"name": name, "finalizers": finalizers}}).to_string();
    assert_eq!(send(server.clone(), "POST", MAPS, object).await.0, 201);
}

/// Each deletion asks the clock: who sees many of that before the first one is durable sees them side by side.
#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_collection_are_deleted_side_by_side() {
    let disk = Disk::default();
    let on = disk.clone();
    let store = store::Store::open_on(move || Ok(on.clone()), store::Options::default()).unwrap();
    let (asked, mut seen) = watch::channel(0);
    let mut config = Config::new(store);
    config.clock = Arc::new(move || {
        asked.send_modify(|count| *count += 1);
        jiff::Timestamp::UNIX_EPOCH
    });
    let server = Server::open(config).await.unwrap();
    for index in 0..40 {
        make(&server, &format!("m{index}"), &[]).await;
    }
    make(&server, "stays", &["example.com/f"]).await;
    let before = *seen.borrow_and_update();
    disk.hold(true);
    let deletion = tokio::spawn(send(server.clone(), "DELETE", MAPS, String::new()));
    let side_by_side = async { seen.wait_for(|count| *count >= before + 10).await.map(|count| *count) };
    let begun = tokio::time::timeout(Duration::from_secs(60), side_by_side).await;
    disk.hold(false);
    begun.expect("they wait for one another").unwrap();
    let (code, deleted) = deletion.await.unwrap();
    // `kube-root-ca.crt` may be there as well.
    assert_eq!((code, deleted["items"].as_array().map(|items| items.len() >= 41)), (200, Some(true)));
    let (_, left) = send(server, "GET", MAPS, String::new()).await;
    let left = left["items"].as_array().unwrap();
    assert_eq!(
        left.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["stays"]
    );
    assert!(left[0]["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn a_collection_without_namespaces_and_one_of_a_selector_are_deleted_by_their_keys() {
    let store = store::Store::open_on(|| Ok(Disk::default()), store::Options::default()).unwrap();
    let server = Server::open(Config::new(store)).await.unwrap();
    let nodes = "/api/v1/nodes";
    for name in ["a", "b"] {
        let object = json!({"metadata": {"name": name, "labels": {"is": name}}}).to_string();
        assert_eq!(send(server.clone(), "POST", nodes, object).await.0, 201);
    }
    let path = format!("{nodes}?labelSelector=is%3Da");
    assert_eq!(send(server.clone(), "DELETE", &path, String::new()).await.0, 200);
    let (_, left) = send(server, "GET", nodes, String::new()).await;
    let names: Vec<_> =
        left["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["b"]);
}
