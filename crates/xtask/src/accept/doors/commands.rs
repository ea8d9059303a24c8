//! Commands whose daemon dies, and commands that end everything although something resists.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Door, Stage};
use crate::sandbox::Sandbox;

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "commands-daemon-comes-back",
        wanted: "up and logs -f go on when a daemon that was killed is there again in time, without a line lost or twice",
        short: false,
        attack: comes_back,
    },
    Door {
        name: "commands-daemon-stays-dead",
        wanted: "up, run, logs -f and down end with an error and a hint when the daemon stays dead",
        short: false,
        attack: stays_dead,
    },
    Door {
        name: "commands-end-a-finalizer",
        wanted: "stop --all ends although a Pod has a finalizer of somebody else's, and names it",
        short: true,
        attack: finalizer,
    },
    Door {
        name: "commands-end-a-frozen-daemon",
        wanted: "uninstall ends everything of a daemon, a proxy and a keeper that do not answer",
        short: false,
        attack: frozen,
    },
    Door {
        name: "commands-registry-reads",
        wanted: "after `gantry registry reads login` nobody reads from the registry without the token",
        short: true,
        attack: registry_reads,
    },
];

/// Longest that a command may go on without its daemon: the bound of 30 s, a connection's 10 s, and a slow machine.
const DEAD_MAX: Duration = Duration::from_secs(90);
/// Longest that the end of everything may take: the bounds on programs, daemon, containers and proxy.
const END_MAX: Duration = Duration::from_secs(120);

/// Prints a number every few milliseconds.
const COUNTS: &str = "package main\n\nimport (\n\t\"fmt\"\n\t\"time\"\n)\n\nfunc main() {\n\tfor i := 0; ; i++ {\n\t\tfmt.Println(i)\n\t\ttime.Sleep(20 * time.Millisecond)\n\t}\n}\n";
/// Listens when the file `/gate/open` is there.
const LATE: &str = "package main\n\nimport (\n\t\"net/http\"\n\t\"os\"\n\t\"time\"\n)\n\nfunc main() {\n\tfor {\n\t\tif _, err := os.Stat(\"/gate/open\"); err == nil {\n\t\t\tbreak\n\t\t}\n\t\ttime.Sleep(20 * time.Millisecond)\n\t}\n\thttp.ListenAndServe(\":8080\", nil)\n}\n";

/// A command that runs beside the attack; what it says goes to files.
struct Beside {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Beside {
    fn start(sandbox: &Sandbox, arguments: &[&str]) -> Result<Self> {
        let name = arguments.join(" ");
        let folder = sandbox.work("beside")?;
        let file = |what: &str| folder.join(format!("{}.{what}", name.replace(['/', ' '], "_")));
        let (stdout, stderr) = (file("out"), file("err"));
        let mut command = sandbox.command(arguments);
        command
            .stdout(std::fs::File::create(&stdout)?)
            .stderr(std::fs::File::create(&stderr)?)
            .stdin(Stdio::null());
        let child = command.spawn().with_context(|| format!("start gantry {name}"))?;
        Ok(Self { name, child, stdout, stderr })
    }

    /// Waits for its end; how it ended and what it said as errors.
    fn end(&mut self, within: Duration) -> Result<(bool, String)> {
        let deadline = Instant::now() + within;
        let status = wait(deadline, || Ok(self.child.try_wait()?))
            .with_context(|| format!("gantry {} has not ended after {} s", self.name, within.as_secs()));
        if status.is_err() {
            // Ours, and not reaped.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        Ok((status?.success(), std::fs::read_to_string(&self.stderr)?))
    }
}

/// Asks again until there is an answer, or the deadline: what another process does is not announced.
fn wait<T>(deadline: Instant, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("nothing happened until the deadline");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn program(sandbox: &Sandbox, name: &str, source: &str) -> Result<String> {
    let folder = sandbox.work(name)?;
    std::fs::write(folder.join("go.mod"), format!("module example.com/{name}\n\ngo 1.25\n"))?;
    std::fs::write(folder.join("main.go"), source)?;
    folder.to_str().map(str::to_owned).context("the temporary folder is no text")
}

/// Whether a Pod of the program runs.
fn runs(sandbox: &Sandbox, label: &str) -> Result<Option<()>> {
    let pods = sandbox.get(&format!("/api/v1/namespaces/default/pods?labelSelector={label}"))?;
    let running =
        |pod: &serde_json::Value| !pod["status"]["containerStatuses"][0]["state"]["running"].is_null();
    Ok(pods["items"].as_array().is_some_and(|pods| pods.iter().any(running)).then_some(()))
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    // The last one may be cut.
    let end = text.rfind('\n').unwrap_or_default();
    Ok(text[..end].lines().map(str::to_owned).collect())
}

fn comes_back(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    let gate = sandbox.work("gate")?;
    let mount = format!("{}:/gate", gate.display());
    let late = program(sandbox, "late", LATE)?;
    let counts = program(sandbox, "counts", COUNTS)?;
    let soon = || Instant::now() + DEAD_MAX;
    let mut run = Beside::start(sandbox, &["run", "-q", &counts])?;
    let mut up = Beside::start(sandbox, &["up", &late, "--mount", &mount])?;
    wait(soon(), || runs(sandbox, "app%3Dlate")).context("late runs")?;
    wait(soon(), || Ok((lines(&run.stdout)?.len() > 50).then_some(()))).context("counts is shown")?;
    let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
    let pods = pods["items"].as_array().context("no Pods")?;
    let name = pods
        .iter()
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .find(|name| name.starts_with("counts-"));
    let mut logs = Beside::start(sandbox, &["logs", "-f", name.context("no Pod of counts")?])?;
    wait(soon(), || Ok((lines(&logs.stdout)?.len() > 50).then_some(()))).context("the log is shown")?;
    sandbox.kill(sandbox.daemon_pid()?)?;
    let before = [lines(&run.stdout)?.len(), lines(&logs.stdout)?.len()];
    sandbox.ok(["daemon", "start"])?;
    std::fs::write(gate.join("open"), "")?;
    let (succeeded, said) = up.end(DEAD_MAX)?;
    ensure!(succeeded, "up failed: {said}");
    let mut shown = 0;
    for (command, before) in [(&mut run, before[0]), (&mut logs, before[1])] {
        wait(soon(), || Ok((lines(&command.stdout)?.len() > before + 200).then_some(())))
            .with_context(|| format!("gantry {} goes on", command.name))?;
        command.child.kill()?;
        command.child.wait()?;
        let lines = lines(&command.stdout)?;
        let wrong = lines.iter().enumerate().find(|(index, line)| line.parse() != Ok(*index));
        if let Some((index, line)) = wrong {
            bail!("gantry {}: line {index} is {line:?}", command.name);
        }
        shown += lines.len();
    }
    Ok(format!("{shown} lines shown across a kill, none lost or twice; up was ready"))
}

fn stays_dead(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    let gate = sandbox.work("gate")?;
    let mount = format!("{}:/gate", gate.display());
    let late = program(sandbox, "late", LATE)?;
    let counts = program(sandbox, "counts", COUNTS)?;
    let soon = || Instant::now() + DEAD_MAX;
    let up = Beside::start(sandbox, &["up", &late, "--mount", &mount])?;
    let run = Beside::start(sandbox, &["run", "-q", &counts])?;
    let logs = Beside::start(sandbox, &["logs", "-f", "hello"])?;
    wait(soon(), || runs(sandbox, "app%3Dlate")).context("late runs")?;
    wait(soon(), || Ok((lines(&run.stdout)?.len() > 5).then_some(()))).context("counts is shown")?;
    // A Pod with a finalizer keeps `down` waiting.
    let pods = sandbox.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dlate")?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("no Pod of late")?.to_owned();
    let patch = r#"{"metadata":{"finalizers":["example.com/keep"]}}"#;
    sandbox.kubectl(["patch", "pod", &pod, "--type=merge", "-p", patch])?;
    let down = Beside::start(sandbox, &["down", "late", "--timeout", "10m"])?;
    wait(soon(), || {
        let pod = sandbox.get(&format!("/api/v1/namespaces/default/pods/{pod}"))?;
        Ok((!pod["metadata"]["deletionTimestamp"].is_null()).then_some(()))
    })?;
    sandbox.kill(sandbox.daemon_pid()?)?;
    let started = Instant::now();
    let mut seen = Vec::new();
    for mut command in [up, run, logs, down] {
        let (succeeded, said) = command.end(DEAD_MAX)?;
        let word = command.name.split(' ').next().unwrap_or_default().to_owned();
        ensure!(
            !succeeded && said.contains("error: ") && said.contains("hint: "),
            "gantry {word} said {said:?}"
        );
        seen.push(format!("{word} after {:.0} s", started.elapsed().as_secs_f64()));
    }
    sandbox.ok(["daemon", "start"])?;
    sandbox.kubectl(["patch", "pod", &pod, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).ok();
    Ok(format!("error and hint: {}", seen.join(", ")))
}

/// A second gantry, beside the one that is used all the while.
fn other(stage: &Stage) -> Result<Sandbox> {
    let sandbox = Sandbox::new(&stage.setting.gantry)?;
    super::fixtures::up_one(&sandbox, &super::fixtures::FIXTURES[0], 1)?;
    Ok(sandbox)
}

fn finalizer(stage: &Stage) -> Result<String> {
    let sandbox = other(stage)?;
    let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
    let pod = pods["items"][0]["metadata"]["name"].as_str().context("no Pod")?.to_owned();
    let patch = r#"{"metadata":{"finalizers":["example.com/keep"]}}"#;
    sandbox.kubectl(["patch", "pod", &pod, "--type=merge", "-p", patch])?;
    let started = Instant::now();
    let (succeeded, said) =
        Beside::start(&sandbox, &["daemon", "stop", "--all", "--timeout", "5s"])?.end(END_MAX)?;
    ensure!(succeeded, "stop --all failed: {said}");
    let names = format!("pod default/{pod} is kept by the finalizer example.com/keep");
    ensure!(said.contains(&names), "it does not name what resisted: {said}");
    let seconds = started.elapsed().as_secs_f64();
    sandbox.ok(["uninstall", "--purge"])?;
    Ok(format!("ended after {seconds:.1} s, and named the finalizer"))
}

fn frozen(stage: &Stage) -> Result<String> {
    let sandbox = other(stage)?;
    let mut frozen = vec![sandbox.daemon_pid()?, sandbox.proxy_pid()?];
    let state = sandbox.state();
    let state = state.to_str().context("the state folder is no text")?;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&line).replace('\0', " ");
        if text.starts_with("gantry keeper ") && text.contains(state) {
            let pid = entry.file_name().to_string_lossy().parse().context("a keeper's process id")?;
            frozen.push(nix::unistd::Pid::from_raw(pid));
        }
    }
    ensure!(frozen.len() == 3, "{} processes to stop, not daemon, proxy and one keeper", frozen.len());
    for pid in &frozen {
        nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGSTOP)?;
    }
    let started = Instant::now();
    let mut uninstall = Beside::start(&sandbox, &["uninstall", "--purge", "--timeout", "5s"])?;
    let ended = uninstall.end(END_MAX);
    // Whatever came of it, nothing of the test's own stays stopped.
    for pid in &frozen {
        let _ = nix::sys::signal::kill(*pid, nix::sys::signal::Signal::SIGCONT);
    }
    let (succeeded, said) = ended?;
    ensure!(succeeded, "uninstall failed: {said}");
    ensure!(!sandbox.state().exists(), "{state} is still there");
    Ok(format!("ended after {:.0} s", started.elapsed().as_secs_f64()))
}

fn registry_reads(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    let address = sandbox.endpoint("registry")?;
    let read = |token: Option<&str>| -> Result<String> {
        let url = format!("http://{address}/v2/_catalog");
        let header = token.map(|token| format!("Authorization: Bearer {token}"));
        let mut arguments =
            vec!["--silent", "--max-time", "20", "--output", "/dev/null", "--write-out", "%{http_code}"];
        arguments.extend(header.iter().flat_map(|header| ["--header", header.as_str()]));
        arguments.push(&url);
        Ok(String::from_utf8_lossy(&stage.as_nobody("curl", arguments)?.stdout).into_owned())
    };
    ensure!(read(None)? == "200", "reads are open by default, the README says");
    sandbox.ok(["registry", "reads", "login"])?;
    sandbox.ok(["daemon", "stop"])?;
    sandbox.ok(["daemon", "start"])?;
    let token = std::fs::read_to_string(sandbox.state().join("registry-token"))?;
    let (without, with) = (read(None)?, read(Some(token.trim()))?);
    ensure!(without == "401" && with == "200", "without the token {without}, with it {with}");
    // Our own commands have the token.
    ensure!(sandbox.ok(["image", "ls"])?.contains("hello"), "gantry image ls does not list hello");
    super::fixtures::up_one(sandbox, &super::fixtures::FIXTURES[0], 2)?;
    Ok("401 without the token; with it, and for gantry's own commands, as before".to_owned())
}
