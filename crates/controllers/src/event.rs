//! Events: what a controller did, told to the user.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use lifecycle::Scope;
use lifecycle::bound::Bound;
use serde_json::json;
use tokio::sync::mpsc;

/// Events that may wait to be written; more are dropped, and counted.
const WAITING_MAX: usize = 1024;
/// Events whose repetitions are counted in one object.
const REMEMBERED_MAX: usize = 1024;

/// Normal or Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Type {
    Normal,
    Warning,
}

/// Writes events in the background; a controller never waits for one.
#[derive(Clone)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<Said>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Said {
    about: About,
    kind: Type,
    reason: &'static str,
    message: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct About {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

impl Recorder {
    pub(crate) fn start(client: Client, component: &'static str, scope: &Scope) -> Self {
        let (sender, mut said) = mpsc::channel::<Said>(WAITING_MAX);
        scope.spawn("events", async move {
            let mut written: HashMap<Said, (String, i32)> = HashMap::new();
            while let Some(next) = said.recv().await {
                if written.len() >= REMEMBERED_MAX {
                    written.clear();
                }
                if let Err(error) = write(&client, component, &next, &mut written).await {
                    // An event about an object in a namespace that is ending is refused, rightly.
                    tracing::debug!(component, error = crate::error::chain(&error), "write event");
                }
            }
        });
        Self { sender }
    }

    /// Says something about `object`.
    pub(crate) fn say<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: Type,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let about = About {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
            uid: object.meta().uid.clone().unwrap_or_default(),
        };
        if self.sender.try_send(Said { about, kind, reason, message: message.into() }).is_err() {
            Bound::new("controller_event_queue_events", WAITING_MAX as u64).refuse();
        }
    }
}

async fn write(
    client: &Client,
    component: &str,
    said: &Said,
    written: &mut HashMap<Said, (String, i32)>,
) -> Result<(), kube::Error> {
    let namespace = if said.about.namespace.is_empty() { "default" } else { &said.about.namespace };
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    let now = Timestamp::now();
    if let Some((name, count)) = written.get_mut(said) {
        let again = json!({"count": *count + 1, "lastTimestamp": Time(now)});
        match api.patch(name, &PatchParams::default(), &Patch::Merge(again)).await {
            Ok(_) => {
                *count += 1;
                return Ok(());
            }
            Err(error) if crate::error::code(&error) == Some(404) => {}
            Err(error) => return Err(error),
        }
    }
    let name = format!("{}.{:x}", said.about.name, now.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(said.about.api_version.clone()),
            kind: Some(said.about.kind.clone()),
            name: Some(said.about.name.clone()),
            namespace: Some(said.about.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(said.about.uid.clone()),
            ..ObjectReference::default()
        },
        type_: Some(format!("{:?}", said.kind)),
        reason: Some(said.reason.to_owned()),
        message: Some(said.message.clone()),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        reporting_component: Some(component.to_owned()),
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await?;
    written.insert(said.clone(), (name, 1));
    Ok(())
}
