//! All controllers on the API server, with a kubelet and users that are played by a seed.
//!
//! The kubelet starts and ends Pods in any order; users create, scale, replace, roll back and delete meanwhile; the
//! controllers are stopped and started again in between. Nothing waits by the clock: each wait is for the objects to be
//! as wanted, looked at whenever one of them changed. `GANTRY_SEED=N` runs one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use lifecycle::Scope;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Steps of the users in a run.
const STEPS: usize = 40;
/// Longer than any wait takes, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// An image with this in its name never gets ready.
const BAD: &str = "bad";

struct World {
    _folder: tempfile::TempDir,
    seed: u64,
    server: apiserver::Server,
    client: Client,
    /// Counts what was seen to change.
    changes: watch::Receiver<u64>,
    scope: Scope,
    controllers: Option<Scope>,
    random: StdRng,
    /// What the users want: replicas and image of each Deployment.
    wanted: BTreeMap<String, (i32, String)>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = store::Store::open(&folder.path().join("store"), store::Options::default()).unwrap();
        let server = apiserver::Server::open(apiserver::Config::new(store)).await.unwrap();
        let client = server.client(apiserver::Identity::admin());
        let scope = Scope::new("simulation");
        let (count, changes) = watch::channel(0);
        let count = Arc::new(count);
        listen::<Deployment>(&client, &count, &scope);
        listen::<ReplicaSet>(&client, &count, &scope);
        listen::<Pod>(&client, &count, &scope);
        listen::<EndpointSlice>(&client, &count, &scope);
        let node: Node = object(json!({"metadata": {"name": "n1"}}));
        Api::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
        let status = json!({"status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "500"},
            "conditions": [{"type": "Ready", "status": "True"}]}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        let kubelet = Kubelet { client: client.clone(), random: StdRng::seed_from_u64(seed ^ 0x6b75_6265) };
        scope.spawn("kubelet", kubelet.run());
        let random = StdRng::seed_from_u64(seed);
        let mut world = Self {
            _folder: folder,
            seed,
            server,
            client,
            changes,
            scope,
            controllers: None,
            random,
            wanted: BTreeMap::new(),
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let scope = Scope::new("controllers");
        let server = self.server.clone();
        let client_for = move |user: &str| match user {
            controllers::SCHEDULER_USER => server.client(apiserver::Identity::scheduler()),
            _ => server.client(apiserver::Identity::controllers()),
        };
        controllers::start(client_for, &scope);
        self.controllers = Some(scope);
    }

    async fn restart(&mut self) {
        if let Some(scope) = self.controllers.take() {
            scope.shutdown(LIMIT).await;
        }
        self.start();
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn list<K>(&self, of: &str) -> Vec<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        self.api::<K>().list(&ListParams::default().labels(&format!("app={of}"))).await.unwrap().items
    }

    /// Waits until `found` finds nothing amiss any more.
    async fn until<'a, F: Future<Output = Option<String>>>(
        &'a self,
        what: &str,
        found: impl Fn(&'a Self) -> F,
    ) {
        let mut changes = self.changes.clone();
        let last = Mutex::new(String::new());
        let wait = async {
            loop {
                changes.borrow_and_update();
                let Some(amiss) = found(self).await else { return };
                *last.lock().unwrap() = amiss;
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!("seed {}: {what}: {}", self.seed, last.lock().unwrap());
        }
    }

    /// A user does something, whatever goes on.
    async fn step(&mut self) {
        let name = format!("d{}", self.random.random_range(0..3));
        let Some((replicas, _)) = self.wanted.get(&name).cloned() else {
            return self.create(&name).await;
        };
        match self.random.random_range(0..100) {
            0..20 => {
                let replicas = self.random.random_range(0..6);
                self.patch(&name, json!({"spec": {"replicas": replicas}})).await;
                self.want(&name, |wanted| wanted.0 = replicas);
            }
            20..45 => self.replace(&name).await,
            45..55 => {
                let (surge, unavailable) = (self.random.random_range(1..3), self.random.random_range(0..3));
                let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
                self.patch(&name, json!({"spec": {"strategy": {"rollingUpdate": rolling}}})).await;
            }
            55..65 => {
                let pods = self.list::<Pod>(&name).await;
                if let Some(pod) = pods.choose(&mut self.random) {
                    let _ = self.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await;
                }
            }
            65..73 => self.restart().await,
            73..80 => {
                let policy = [PropagationPolicy::Background, PropagationPolicy::Foreground];
                let policy = policy.choose(&mut self.random).cloned();
                let parameters = DeleteParams { propagation_policy: policy, ..DeleteParams::default() };
                self.api::<Deployment>().delete(&name, &parameters).await.unwrap();
                self.wanted.remove(&name);
                self.until("a deleted Deployment is gone with all that it owns", |world| {
                    let name = name.clone();
                    async move { world.left(&name).await }
                })
                .await;
            }
            _ => self.calm_replacement(&name, replicas).await,
        }
    }

    async fn create(&mut self, name: &str) {
        let (replicas, image) = (self.random.random_range(0..5), "good:0".to_owned());
        let deployment: Deployment = object(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "revisionHistoryLimit": 3,
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": image}]},
                },
            },
        }));
        self.api().create(&PostParams::default(), &deployment).await.unwrap();
        let service: Service = object(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        }));
        // It stays when its Deployment goes.
        let _ = self.api().create(&PostParams::default(), &service).await;
        self.wanted.insert(name.to_owned(), (replicas, image));
    }

    /// A new image, one that never gets ready among them, or an earlier one again: a rollback.
    async fn replace(&mut self, name: &str) {
        let kind = if self.random.random_range(0..4) == 0 { BAD } else { "good" };
        let image = format!("{kind}:{}", self.random.random_range(0..6));
        self.set_image(name, &image).await;
    }

    async fn set_image(&mut self, name: &str, image: &str) {
        let spec = json!({"containers": [{"name": "c", "image": image}]});
        self.patch(name, json!({"spec": {"template": {"spec": spec}}})).await;
        self.want(name, |wanted| wanted.1 = image.to_owned());
    }

    async fn patch(&self, name: &str, patch: Value) {
        self.api::<Deployment>()
            .patch(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await
            .unwrap();
    }

    fn want(&mut self, name: &str, change: impl FnOnce(&mut (i32, String))) {
        change(self.wanted.get_mut(name).unwrap());
    }

    /// A replacement with nothing else going on: never more Pods than maxSurge allows, never fewer ready ones than
    /// maxUnavailable does, after each single change of a Pod.
    async fn calm_replacement(&mut self, name: &str, replicas: i32) {
        self.set_image(name, "good:7").await;
        self.settled().await;
        let deployment = self.api::<Deployment>().get(name).await.unwrap();
        let rolling = deployment.spec.unwrap().strategy.unwrap().rolling_update.unwrap();
        let most = replicas + of(rolling.max_surge.as_ref(), replicas, true);
        let least = replicas - of(rolling.max_unavailable.as_ref(), replicas, false);
        let scope = Scope::new("calm");
        let (report, mut least_seen) = watch::channel(None);
        scope.spawn("readiness", fewest_ready(self.api(), name.to_owned(), report));
        least_seen.wait_for(Option::is_some).await.unwrap();
        self.set_image(name, "good:8").await;
        self.until("a calm replacement ends", |world| async move {
            let sets = world.list::<ReplicaSet>(name).await;
            let total: i32 = sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap_or(1)).sum();
            assert!(total <= most, "seed {}: {total} replicas are wanted of at most {most}", world.seed);
            world.unsettled(name).await
        })
        .await;
        let fewest = least_seen.borrow().unwrap();
        assert!(fewest >= least, "seed {}: {fewest} Pods were ready of at least {least}", self.seed);
        scope.shutdown(LIMIT).await;
    }

    /// Waits until everything is as the users want it.
    async fn settled(&self) {
        for name in self.wanted.keys() {
            self.until(&format!("{name} settles"), |world| world.unsettled(name)).await;
        }
    }

    /// What is not yet as it must become.
    async fn unsettled(&self, name: &str) -> Option<String> {
        let (replicas, image) = &self.wanted[name];
        let deployment = self.api::<Deployment>().get(name).await.unwrap();
        let status = deployment.status.clone().unwrap_or_default();
        if status.observed_generation != deployment.metadata.generation {
            return Some(format!("generation {:?} is observed", status.observed_generation));
        }
        let pods = self.list::<Pod>(name).await;
        if let Some(pod) = pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("{} is being deleted", pod.name_any()));
        }
        let ready: BTreeSet<_> = pods.iter().filter(|pod| is_ready(pod)).map(ip_of).collect();
        let slices: Api<EndpointSlice> = self.api();
        let labelled = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let slices = slices.list(&labelled).await.unwrap();
        let endpoints: BTreeSet<_> = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten())
            .filter(|endpoint| endpoint.conditions.as_ref().is_some_and(|is| is.ready == Some(true)))
            .flat_map(|endpoint| endpoint.addresses.clone())
            .collect();
        if ready != endpoints {
            return Some(format!("{ready:?} are ready, {endpoints:?} are endpoints"));
        }
        if image.contains(BAD) && *replicas > 0 {
            // The new ones cannot become ready; that the old ones stay is `calm_replacement`'s to see.
            let new = status.updated_replicas.unwrap_or(0);
            return (new == 0).then(|| "no Pod of the new version is there".to_owned());
        }
        let counts = [status.replicas, status.updated_replicas, status.available_replicas];
        if counts.iter().any(|count| count.unwrap_or(0) != *replicas) {
            return Some(format!("{counts:?} (all, updated, available) of {replicas}"));
        }
        if pods.len() != usize::try_from(*replicas).unwrap() {
            return Some(format!("{} Pods of {replicas}", pods.len()));
        }
        let images: BTreeSet<_> =
            pods.iter().map(|pod| pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap()).collect();
        if images.iter().any(|one| one != image) {
            return Some(format!("{images:?} run"));
        }
        let sets = self.list::<ReplicaSet>(name).await;
        let old = sets.iter().filter(|set| set.spec.as_ref().unwrap().replicas == Some(0)).count();
        (old > 4).then(|| format!("{old} old ReplicaSets are kept"))
    }

    /// What a deleted Deployment has left.
    async fn left(&self, name: &str) -> Option<String> {
        if self.api::<Deployment>().get_opt(name).await.unwrap().is_some() {
            return Some("the Deployment is there".to_owned());
        }
        let (sets, pods) = (self.list::<ReplicaSet>(name).await, self.list::<Pod>(name).await);
        (!sets.is_empty() || !pods.is_empty())
            .then(|| format!("{} ReplicaSets, {} Pods", sets.len(), pods.len()))
    }

    async fn end(mut self) {
        if let Some(scope) = self.controllers.take() {
            assert_eq!(scope.shutdown(LIMIT).await, Vec::<String>::new());
        }
        self.scope.shutdown(LIMIT).await;
    }
}

/// Counts each change of a kind.
fn listen<K>(client: &Client, count: &Arc<watch::Sender<u64>>, scope: &Scope)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    let (api, count) = (Api::<K>::namespaced(client.clone(), "default"), Arc::clone(count));
    scope.spawn("listen", async move {
        let mut events = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
        while events.next().await.is_some() {
            count.send_modify(|count| *count += 1);
        }
    });
}

/// Reports the fewest Pods of an app that were ready at a time; every event is looked at, in the store's order.
async fn fewest_ready(api: Api<Pod>, app: String, report: watch::Sender<Option<i32>>) {
    let labelled = watcher::Config::default().labels(&format!("app={app}"));
    let mut events = Box::pin(watcher(api, labelled).default_backoff());
    let mut ready = BTreeSet::new();
    let mut listed = false;
    while let Some(event) = events.next().await {
        match event.unwrap() {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                if is_ready(&pod) && pod.metadata.deletion_timestamp.is_none() {
                    ready.insert(pod.name_any());
                } else {
                    ready.remove(&pod.name_any());
                }
            }
            watcher::Event::Delete(pod) => {
                ready.remove(&pod.name_any());
            }
            watcher::Event::Init => {}
            watcher::Event::InitDone => listed = true,
        }
        if listed {
            let count = i32::try_from(ready.len()).unwrap();
            report.send_modify(|least| *least = Some(least.map_or(count, |least| least.min(count))));
        }
    }
}

/// Starts Pods and lets them go, one at a time, which of them by the seed.
struct Kubelet {
    client: Client,
    random: StdRng,
}

impl Kubelet {
    async fn run(mut self) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let mut events = Box::pin(watcher(api.clone(), watcher::Config::default()).default_backoff());
        let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
        let mut address = 0;
        loop {
            let due: Vec<String> =
                pods.iter().filter(|(_, pod)| is_due(pod)).map(|(name, _)| name.clone()).collect();
            // What is there is heard first; then the seed picks who is served.
            let event = match due.is_empty() {
                true => events.next().await,
                false => futures::FutureExt::now_or_never(events.next()).flatten(),
            };
            match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    pods.insert(pod.name_any(), pod);
                    continue;
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    pods.remove(&pod.name_any());
                    continue;
                }
                Some(_) => continue,
                None => {}
            }
            let Some(name) = due.choose(&mut self.random) else { continue };
            let Some(pod) = pods.remove(name) else { continue };
            if pod.metadata.deletion_timestamp.is_some() {
                let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
                let _ = api.delete(name, &now).await;
                continue;
            }
            address += 1;
            let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
            let ready = if image.contains(BAD) { "False" } else { "True" };
            let status = json!({"metadata": {"uid": pod.uid()}, "status": {
                "phase": "Running",
                "podIP": format!("10.1.{}.{}", address / 250, address % 250 + 1),
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            }});
            // Gone or changed meanwhile: its events tell.
            let _ = api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await;
        }
    }
}

/// Whether the kubelet has something to do for a Pod.
fn is_due(pod: &Pod) -> bool {
    let scheduled = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let running = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    pod.metadata.deletion_timestamp.is_some() || (scheduled && !running)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True")
}

fn ip_of(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default()
}

/// A number or a share of the replicas.
fn of(
    value: Option<&k8s_openapi::apimachinery::pkg::util::intstr::IntOrString>,
    replicas: i32,
    up: bool,
) -> i32 {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(share)) => {
            let hundredths = share.trim_end_matches('%').parse::<i32>().unwrap() * replicas;
            if up { (hundredths + 99) / 100 } else { hundredths / 100 }
        }
        None => 0,
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

async fn run(seed: u64) {
    let mut world = World::new(seed).await;
    for _ in 0..STEPS {
        world.step().await;
        if world.random.random_range(0..5) == 0 {
            world.settled().await;
        }
    }
    world.settled().await;
    world.end().await;
}

#[test]
fn whatever_users_do_it_becomes_as_they_want() {
    let seeds = match std::env::var("GANTRY_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 1..5,
    };
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(seed));
    }
}
