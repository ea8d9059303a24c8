//! The program that is acted on, what is wanted of it, and whether the machine is what the API says.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::Traces;
use crate::bench::api::{Api, Connection};
use crate::sandbox::Sandbox;

/// The program that is acted on.
pub(super) const PROGRAM: &str = "acted";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/acted";
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dacted";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/gantry-system/leases";
/// A machine that does not settle by then never will.
const SETTLE_MAX: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// What is wanted of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) replicas: u64,
    pub(super) version: String,
}

pub(super) struct World<'a> {
    pub(super) sandbox: &'a Sandbox,
    traces: Traces,
}

impl<'a> World<'a> {
    pub(super) fn new(sandbox: &'a Sandbox) -> Result<Self> {
        Ok(Self { sandbox, traces: Traces::of(sandbox)? })
    }

    pub(super) fn api(&self) -> Result<Api> {
        Api::of_kubeconfig(&self.sandbox.state().join("kubeconfig"))
    }

    /// What the API says is wanted; `None`: there is no such program.
    pub(super) fn wanted(&self) -> Result<Option<Wanted>> {
        let mut connection = self.api()?.connect()?;
        let deployment = match connection.send("GET", DEPLOYMENT, "", "")? {
            (404, _) => return Ok(None),
            (200, answer) => serde_json::from_slice::<Value>(&answer)?,
            (status, _) => bail!("{DEPLOYMENT}: {status}"),
        };
        let environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
        let version = environment.into_iter().flatten().find(|one| one["name"] == "VERSION");
        let version = version.and_then(|one| one["value"].as_str()).unwrap_or_default().to_owned();
        Ok(Some(Wanted { replicas: deployment["spec"]["replicas"].as_u64().unwrap_or(1), version }))
    }

    /// A Pod of the program, by its name.
    pub(super) fn pod(&self, number: usize) -> Result<Option<String>> {
        let pods = self.api()?.connect()?.ok("GET", PODS, "", "")?;
        let items = pods["items"].as_array().context("a list without items")?;
        let names: Vec<_> = items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
        Ok((!names.is_empty()).then(|| names[number % names.len()].to_owned()))
    }

    /// A keeper's process, if there is one.
    pub(super) fn keeper(&self, number: usize) -> Result<Option<i32>> {
        let keepers = self.traces.keepers()?;
        Ok((!keepers.is_empty()).then(|| keepers[number % keepers.len()].0))
    }

    /// Waits until everything is as it is wanted, and nothing else is there; what that took.
    pub(super) fn settle(&self) -> Result<Duration> {
        let started = Instant::now();
        loop {
            match self.look() {
                Ok(()) => return Ok(started.elapsed()),
                Err(error) if started.elapsed() > SETTLE_MAX => {
                    let seconds = SETTLE_MAX.as_secs();
                    return Err(error.context(format!("not settled within {seconds} s; {}", self.told())));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }

    /// What the API says of the program's Pods, for a reader of the failure.
    fn told(&self) -> String {
        let pods = self.api().and_then(|api| api.connect()?.ok("GET", PODS, "", ""));
        let pods = match pods {
            Ok(pods) => pods,
            Err(error) => return format!("the API says {error:#}"),
        };
        let of = |pod: &Value| {
            let (name, status) = (&pod["metadata"]["name"], &pod["status"]);
            let deleted = &pod["metadata"]["deletionTimestamp"];
            format!("{name} deleted {deleted}: {} {}", status["conditions"], status["containerStatuses"])
        };
        pods["items"].as_array().into_iter().flatten().map(of).collect::<Vec<_>>().join("; ")
    }

    fn look(&self) -> Result<()> {
        let mut connection = self.api()?.connect()?;
        let pods = connection.ok("GET", PODS, "", "")?;
        let pods = pods["items"].as_array().context("a list without items")?;
        match connection.send("GET", DEPLOYMENT, "", "")? {
            (404, _) => ensure!(pods.is_empty(), "{} Pods of a program that is no more", pods.len()),
            (200, answer) => {
                has_settled(&serde_json::from_slice(&answer)?, pods)?;
                self.serves(&mut connection)?;
            }
            (status, _) => bail!("{DEPLOYMENT}: {status}"),
        }
        self.one_lease(&mut connection)?;
        self.no_stray_links(&mut connection)
    }

    /// Its Service, when it has one, answers.
    fn serves(&self, connection: &mut Connection) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/services/{PROGRAM}");
        if connection.send("GET", &path, "", "")?.0 == 404 {
            return Ok(());
        }
        let answer = crate::demo::get(&self.sandbox.address(PROGRAM)?.to_string())?;
        ensure!(answer.contains("Hello"), "the program answers {answer:?}");
        Ok(())
    }

    /// The running proxy's Lease, and no other's.
    fn one_lease(&self, connection: &mut Connection) -> Result<()> {
        let list = connection.ok("GET", LEASES, "", "")?;
        let leases = list["items"].as_array().context("a list without items")?;
        let names: Vec<_> = leases.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
        ensure!(names.len() == 1, "the Leases {names:?} in place of one proxy's");
        Ok(())
    }

    /// In the router's namespace there is a link for each Pod, and none more.
    fn no_stray_links(&self, connection: &mut Connection) -> Result<()> {
        let list = connection.ok("GET", "/api/v1/pods", "", "")?;
        let pods = list["items"].as_array().context("a list without items")?.len();
        let links = links(&self.sandbox.state().join("run/netns/router"))?;
        ensure!(links.len() <= pods, "{} links for {pods} Pods: {links:?}", links.len());
        Ok(())
    }

    /// Nothing is left on the machine of what the API does not know.
    pub(super) fn no_orphan(&self) -> Result<()> {
        self.traces.check_no_orphan(&self.api()?)
    }
}

fn has_settled(deployment: &Value, pods: &[Value]) -> Result<()> {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let status = &deployment["status"];
    let count = |name: &str| status[name].as_u64().unwrap_or_default();
    ensure!(
        count("observedGeneration") == deployment["metadata"]["generation"].as_u64().unwrap_or_default(),
        "the controller has not seen the last change"
    );
    for name in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        ensure!(count(name) == wanted, "{name} is {} of {wanted}", count(name));
    }
    ensure!(pods.len() as u64 == wanted, "{} Pods for {wanted} replicas", pods.len());
    Ok(())
}

/// The links of a network namespace, but for loopback.
fn links(namespace: &PathBuf) -> Result<Vec<String>> {
    let file = std::fs::File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    // A namespace belongs to a thread.
    let table = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<String> {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)
        });
        reader.join().unwrap_or_else(|_| bail!("the reader panicked"))
    })?;
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim);
    Ok(names.filter(|name| *name != "lo").map(str::to_owned).collect())
}
