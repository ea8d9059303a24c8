//! Applying a program and following it until it serves: what `up`, `scale` and `rollback` have in common.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, ValidationDirective},
};
use serde_json::{Value, json};

use crate::{
    context::{Connection, Context},
    failure::{Failure, Result},
    workload::{
        APP_LABEL, MANAGER, SCALE_MANAGER,
        ports::{self, Reach},
        rollout::{Follower, Verdict},
        spec::Spec,
        trouble::{self, Trouble},
    },
};

/// What a finished rollout is.
#[derive(Clone, Debug)]
pub struct Done {
    pub ready: i32,
    pub wanted: i32,
    pub revision: String,
    pub addresses: Vec<String>,
}

/// A rollout that is followed.
pub struct Rollout<'a> {
    pub context: &'a Context,
    pub connection: &'a Connection,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The Deployment's generation that is to be seen through.
    pub generation: i64,
    /// The program whose Service is to be applied when its ports are known; otherwise an existing one is read only.
    pub spec: Option<&'a Spec>,
    /// Whether there was a Service before.
    pub had_service: bool,
    pub timeout: Duration,
}

/// Applies as gantry: what was applied before and is not in the object goes.
pub async fn apply<K>(api: &Api<K>, name: &str, object: &Value) -> Result<K>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let parameters = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER).force()
    };
    Ok(api.patch(name, &parameters, &Patch::Apply(object)).await?)
}

/// Sets the number of replicas under a manager of its own, so that the next `up` leaves it.
pub async fn set_replicas(
    deployments: &Api<Deployment>,
    namespace: &str,
    name: &str,
    replicas: u32,
) -> Result<Deployment> {
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "replicas": replicas },
    });
    let parameters = PatchParams::apply(SCALE_MANAGER).force();
    Ok(deployments.patch(name, &parameters, &Patch::Apply(&object)).await?)
}

/// A Deployment by name, or an error that says how to find out what there is.
pub async fn deployment(connection: &Connection, namespace: &str, name: &str) -> Result<Deployment> {
    let found = connection.api::<Deployment>(namespace).get_opt(name).await?;
    found.ok_or_else(|| no_such(name))
}

/// Nothing of that name runs.
pub fn no_such(name: &str) -> Failure {
    Failure::new(format!("nothing called {name:?} runs")).hint("see what does: gantry ps".to_owned())
}

impl Rollout<'_> {
    /// Follows until the new version serves, or it is clear that it will not.
    pub async fn follow(&self) -> Result<Done> {
        let mut follower = Follower::new(&self.connection.client, self.namespace, self.name);
        let deadline = Instant::now() + self.timeout;
        let mut applied = self.spec.is_none();
        loop {
            let now = Instant::now();
            if follower.observed.is_complete() {
                let verdict = follower.observed.assess(self.generation, now);
                let is_ready = matches!(verdict, Verdict::Ready { .. });
                // A first Service can only help; one that there was keeps serving the old version until the new is ready.
                if let Some(spec) = self.spec
                    && !applied
                    && (is_ready || !self.had_service)
                    && let Some(listening) = follower.observed.listening(self.generation)
                {
                    let (service, started) = (spec.service(&listening), Instant::now());
                    follower.observed.service = Some(apply(&self.services(), self.name, &service).await?);
                    applied = true;
                    let facts = format!("service/{}", self.name);
                    self.context.printer.step("Applied", &facts, Some(started.elapsed()));
                }
                match verdict {
                    Verdict::Failed(trouble) => {
                        return Err(self.failed(&trouble, follower.observed.old_serves()).await);
                    }
                    Verdict::Waiting { ready, wanted, doing } => {
                        self.context
                            .printer
                            .progress(format!("{} {ready}/{wanted} ready, {doing}", self.name));
                    }
                    Verdict::Ready { ready, wanted, revision } => {
                        if wanted == 0 {
                            return Ok(Done { ready, wanted, revision, addresses: vec![] });
                        }
                        match self.reach(&follower, applied) {
                            Reach::Addresses(addresses) => {
                                return Ok(Done { ready, wanted, revision, addresses });
                            }
                            Reach::Refused(why) => return Err(self.refused(&why)),
                            Reach::Unknown => {
                                self.context.printer.progress("waiting for the proxy to listen")
                            }
                        }
                    }
                }
            }
            if now >= deadline {
                return Err(self.too_late(&follower).await);
            }
            let until = follower.observed.deadline().map_or(deadline, |passing| passing.min(deadline));
            tokio::select! {
                biased;
                () = self.context.cancel.cancelled() => return Err(self.interrupted()),
                change = tokio::time::timeout_at(until.into(), follower.next()) => {
                    // Nothing happened until the deadline: it is assessed again.
                    let left = format!("deployment/{} was applied and goes on by itself", self.name);
                    change.unwrap_or(Ok(())).map_err(|failure| failure.adding(&left))?;
                }
            }
        }
    }

    /// Programs without a Service of the same name have no address, and that is an answer too.
    fn reach(&self, follower: &Follower, applied: bool) -> Reach {
        match (&follower.observed.service, self.spec) {
            (Some(service), _) if applied => ports::reach(service),
            (None, None) => Reach::Addresses(vec![]),
            _ => Reach::Unknown,
        }
    }

    fn services(&self) -> Api<Service> {
        self.connection.api(self.namespace)
    }

    fn refused(&self, why: &str) -> Failure {
        Failure::new(format!("{} runs, but has no address: {why}", self.name)).hint(format!(
            "choose another port of this machine: gantry up … --name {} -p 8081:8080",
            self.name
        ))
    }

    async fn too_late(&self, follower: &Follower) -> Failure {
        let seconds = self.timeout.as_secs();
        let pods = self.connection.api::<Pod>(self.namespace);
        let parameters = kube::api::ListParams::default().labels(&format!("{APP_LABEL}={}", self.name));
        let pods = pods.list(&parameters).await.map(|list| list.items).unwrap_or_default();
        let newest = pods
            .iter()
            .filter(|pod| !trouble::is_ready(pod))
            .max_by_key(|pod| pod.creation_timestamp().map(|t| t.0));
        let trouble = match newest {
            Some(pod) => trouble::of_silence(pod, seconds),
            None => Trouble { message: format!("not ready after {seconds} s"), ..Trouble::default() },
        };
        self.failed(&trouble, follower.observed.old_serves()).await
    }

    async fn failed(&self, trouble: &Trouble, old_serves: bool) -> Failure {
        let told = trouble::tell(&self.connection.client, self.namespace, trouble).await;
        let message = format!("{} did not become ready: {}", self.name, trouble.message);
        let left = if old_serves {
            "the old version serves on".to_owned()
        } else {
            format!("deployment/{} is left as it is", self.name)
        };
        let back = if old_serves {
            format!("gantry rollback {}", self.name)
        } else {
            format!("gantry down {}", self.name)
        };
        let hint = trouble
            .hint
            .clone()
            .unwrap_or_else(|| format!("see gantry logs {}; take it back: {back}", self.name));
        Failure::new(message).adding(&left).output(Some(&told)).hint(hint)
    }

    fn interrupted(&self) -> Failure {
        let name = self.name;
        Failure::interrupted(format!("deployment/{name} was applied and goes on by itself")).hint(format!(
            "see gantry ps {name}; take it back: gantry rollback {name}, or gantry down {name}"
        ))
    }
}

/// Refuses ports of this machine that somebody else has, before anything is changed.
pub async fn check_ports(connection: &Connection, spec: &Spec, service: Option<&Service>) -> Result<()> {
    let ours = |port: u16| {
        let ports = service.and_then(|service| service.spec.as_ref()?.ports.as_ref());
        ports.is_some_and(|ports| ports.iter().any(|entry| entry.port == i32::from(port)))
    };
    for publish in spec.publish.iter().filter(|publish| publish.protocol == "TCP") {
        let Some(port) = publish.host.filter(|port| !ours(*port)) else { continue };
        let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        // Ports below 1024 are the daemon's to open, not the caller's.
        if error.kind() != std::io::ErrorKind::AddrInUse {
            continue;
        }
        let holder = holder(connection, port).await;
        return Err(Failure::new(format!(
            "-p {port}:{}: port {port} is taken by {holder}",
            publish.container
        ))
        .hint(format!("choose another: -p {}:{}", port.saturating_add(1), publish.container)));
    }
    Ok(())
}

/// Who listens on a port of this machine, as far as the caller may know.
async fn holder(connection: &Connection, port: u16) -> String {
    let services =
        Api::<Service>::all(connection.client.clone()).list(&kube::api::ListParams::default()).await;
    let services = services.map(|list| list.items).unwrap_or_default();
    let listens = |service: &&Service| {
        let is_balancer =
            service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("LoadBalancer");
        let suffix = format!(":{port}");
        is_balancer
            && matches!(ports::reach(service), Reach::Addresses(all) if all.iter().any(|a| a.ends_with(&suffix)))
    };
    if let Some(service) = services.iter().find(listens) {
        return format!("service/{}", service.name_any());
    }
    match network::holder(network::Protocol::Tcp, port) {
        Ok(Some(holder)) => format!("{} (process {})", holder.name, holder.pid),
        _ => "another program".to_owned(),
    }
}
