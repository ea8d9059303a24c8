//! Events: what happens to Pods, told once and then counted.
//!
//! The same event again (object, container, type, reason, message) raises the count of the first. An object that has
//! much to say is cut off as client-go cuts it off: 25 at once, then one in five minutes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as Object, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use lifecycle::Scope;
use lifecycle::bound::Bound;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::adapters::MANAGER;
use crate::ports::{Event, Events};
use crate::status::time;

/// Events that wait to be written.
const QUEUE_MAX: usize = 512;
/// Events that are remembered so that they can be counted.
const KNOWN_MAX: usize = 2048;
/// Events of one object at once.
const BURST: f64 = 25.0;
/// Afterwards one in this time.
const REFILL: Duration = Duration::from_secs(300);

struct Told {
    about: ObjectReference,
    event: Event,
}

/// Takes events; a task of the scope writes them.
pub struct Recorder {
    queue: mpsc::Sender<Told>,
    bound: Arc<Bound>,
}

impl Recorder {
    /// A recorder of this node's events.
    pub fn start(client: Client, node_name: &str, scope: &Scope) -> Arc<Self> {
        let (queue, told) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { client, host: node_name.to_owned(), known: Known::default() };
        scope.spawn("events", writer.run(told));
        Arc::new(Self { queue, bound: Bound::new("node_event_queue_events", QUEUE_MAX as u64) })
    }
}

impl Events for Recorder {
    fn record(&self, pod: &Pod, container: Option<&str>, event: Event) {
        let about = about(pod, container);
        if event.warning {
            tracing::info!(pod = about.name, reason = event.reason, message = event.message, "event");
        }
        // An event is a courtesy: nothing waits for one.
        if self.queue.try_send(Told { about, event }).is_err() {
            self.bound.refuse();
        }
        self.bound.set((QUEUE_MAX - self.queue.capacity()) as u64);
    }
}

fn about(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let spec = pod.spec.as_ref();
    let field = container.map(|name| {
        let init = spec.is_some_and(|spec| spec.init_containers.iter().flatten().any(|c| c.name == name));
        let list = if init { "initContainers" } else { "containers" };
        format!("spec.{list}{{{name}}}")
    });
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: field,
    }
}

type Key = (String, String, bool, &'static str, String);

/// What was told already.
#[derive(Default)]
struct Known {
    /// The name and count of each event.
    events: BTreeMap<Key, (String, u32)>,
    order: VecDeque<Key>,
    /// What each object may still say, and since when.
    tokens: BTreeMap<String, (f64, Instant)>,
}

enum Write {
    Create(String),
    Count(String, u32),
    Nothing,
}

impl Known {
    fn take(&mut self, key: Key, name: impl FnOnce() -> String, now: Instant) -> Write {
        let (tokens, since) = self.tokens.entry(key.0.clone()).or_insert((BURST, now));
        let refilled = now.duration_since(*since).as_secs_f64() / REFILL.as_secs_f64();
        *tokens = (*tokens + refilled).min(BURST);
        *since = now;
        if *tokens < 1.0 {
            return Write::Nothing;
        }
        *tokens -= 1.0;
        if let Some((name, count)) = self.events.get_mut(&key) {
            *count += 1;
            return Write::Count(name.clone(), *count);
        }
        let name = name();
        self.events.insert(key.clone(), (name.clone(), 1));
        self.order.push_back(key);
        if self.order.len() > KNOWN_MAX
            && let Some(old) = self.order.pop_front()
        {
            self.events.remove(&old);
            if !self.events.keys().any(|key| key.0 == old.0) {
                self.tokens.remove(&old.0);
            }
        }
        Write::Create(name)
    }

    fn forget(&mut self, key: &Key) {
        self.events.remove(key);
        self.order.retain(|known| known != key);
    }
}

struct Writer {
    client: Client,
    host: String,
    known: Known,
}

impl Writer {
    async fn run(mut self, mut told: mpsc::Receiver<Told>) {
        while let Some(told) = told.recv().await {
            let uid = told.about.uid.clone().unwrap_or_default();
            let field = told.about.field_path.clone().unwrap_or_default();
            let key = (uid, field, told.event.warning, told.event.reason, told.event.message.clone());
            let name = || {
                let nanoseconds = jiff::Timestamp::now().as_nanosecond();
                format!("{}.{nanoseconds:x}", told.about.name.as_deref().unwrap_or_default())
            };
            let namespace = told.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
            let api: Api<Object> = Api::namespaced(self.client.clone(), &namespace);
            let written = match self.known.take(key.clone(), name, Instant::now()) {
                Write::Nothing => continue,
                Write::Create(name) => self.create(&api, name, &told).await,
                Write::Count(name, count) => {
                    let now = time(jiff::Timestamp::now());
                    let patch = json!({"count": count, "lastTimestamp": now});
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
                }
            };
            if let Err(error) = written {
                // Next time it is told anew: it may have expired.
                self.known.forget(&key);
                tracing::debug!(%error, reason = told.event.reason, "write an event");
            }
        }
    }

    async fn create(&self, api: &Api<Object>, name: String, told: &Told) -> kube::Result<()> {
        let now = jiff::Timestamp::now();
        let object = Object {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: told.about.namespace.clone(),
                ..ObjectMeta::default()
            },
            involved_object: told.about.clone(),
            reason: Some(told.event.reason.to_owned()),
            message: Some(told.event.message.clone()),
            type_: Some(if told.event.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource {
                component: Some("kubelet".to_owned()),
                host: Some(self.host.clone()),
            }),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.host.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            event_time: None::<MicroTime>,
            count: Some(1),
            ..Object::default()
        };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        api.create(&params, &object).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(message: &str) -> Key {
        ("uid".to_owned(), String::new(), true, "Unhealthy", message.to_owned())
    }

    #[test]
    fn the_same_event_is_counted_and_a_flood_is_cut_off() {
        let mut known = Known::default();
        let now = Instant::now();
        let name = || "p.1".to_owned();
        assert!(matches!(known.take(key("a"), name, now), Write::Create(_)));
        assert!(matches!(known.take(key("a"), name, now), Write::Count(_, 2)));
        for _ in 0..23 {
            known.take(key("b"), name, now);
        }
        assert!(matches!(known.take(key("a"), name, now), Write::Nothing));
        assert!(matches!(known.take(key("a"), name, now + REFILL), Write::Count(_, 3)));
    }
}
