//! The API's Services, EndpointSlices and Pods as events. A broken watch is taken up again, quickly and for ever; what
//! is known stays in use meanwhile.

use std::time::Duration;

use futures::StreamExt as _;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{self, watcher};
use lifecycle::Scope;
use tokio::sync::mpsc;

use crate::model::{self, Key, Pod, Service, Slice};
use crate::status;

/// Events that wait to be made real.
const WAITING_MAX: usize = 1024;
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// What happened to the objects of one kind.
#[derive(Debug)]
pub(crate) enum Change<T> {
    /// All are about to be listed; what is not among them is gone.
    Restart,
    Listed(Key, T),
    Synced,
    Put(Key, T),
    Removed(Key),
}

#[derive(Debug)]
pub(crate) enum Event {
    Service(Change<Service>),
    Slice(Change<Option<Slice>>),
    Pod(Change<Pod>),
}

impl Event {
    /// 0 Services, 1 slices, 2 Pods.
    pub(crate) fn index(&self) -> usize {
        match self {
            Self::Service(_) => 0,
            Self::Slice(_) => 1,
            Self::Pod(_) => 2,
        }
    }
}

/// Starts to watch.
pub(crate) fn start(client: &Client, scope: &Scope) -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let watch = |resource: ApiResource, name: &str, event: fn(Change<DynamicObject>) -> Option<Event>| {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let (sender, resource) = (sender.clone(), resource.plural);
        scope.spawn(name, async move { follow(api, &resource, event, sender).await });
    };
    watch(status::services(), "watch-services", |change| {
        Some(Event::Service(change.map(|object| Service::parse(&object))?))
    });
    watch(status::slices(), "watch-slices", |change| {
        Some(Event::Slice(change.map(|object| Slice::parse(&object))?))
    });
    watch(status::pods(), "watch-pods", |change| {
        Some(Event::Pod(change.try_map(|object| Pod::parse(&object))?))
    });
    receiver
}

impl Change<DynamicObject> {
    fn map<T>(self, parse: impl FnOnce(DynamicObject) -> T) -> Option<Change<T>> {
        self.try_map(|object| Some(parse(object)))
    }

    fn try_map<T>(self, parse: impl FnOnce(DynamicObject) -> Option<T>) -> Option<Change<T>> {
        Some(match self {
            Self::Restart => Change::Restart,
            Self::Listed(key, object) => Change::Listed(key, parse(object)?),
            Self::Synced => Change::Synced,
            Self::Put(key, object) => Change::Put(key, parse(object)?),
            Self::Removed(key) => Change::Removed(key),
        })
    }
}

async fn follow(
    api: Api<DynamicObject>,
    resource: &str,
    event: fn(Change<DynamicObject>) -> Option<Event>,
    sender: mpsc::Sender<Event>,
) {
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut pause = RETRY_FIRST;
    while let Some(next) = events.next().await {
        let change = match next {
            Ok(watcher::Event::Init) => Change::Restart,
            Ok(watcher::Event::InitApply(object)) => Change::Listed(model::key(&object), object),
            Ok(watcher::Event::InitDone) => Change::Synced,
            Ok(watcher::Event::Apply(object)) => Change::Put(model::key(&object), object),
            Ok(watcher::Event::Delete(object)) => Change::Removed(model::key(&object)),
            Err(error) => {
                tracing::debug!(%error, resource, "watch; what is known stays in use");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
                continue;
            }
        };
        pause = RETRY_FIRST;
        if let Some(event) = event(change)
            && sender.send(event).await.is_err()
        {
            return;
        }
    }
}
