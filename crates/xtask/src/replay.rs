//! `cargo xtask replay`: the scenarios of `tests/replay` against our API server, compared with what a real
//! kube-apiserver answered (or, with `--record`, against that one, to keep its answers).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{print, say, tidy};

mod case;
mod difference;
mod normal;
mod server;

use case::Case;
use difference::Allowed;
pub(crate) use server::Loopback;
use server::Server;

/// Flags of the task.
#[derive(clap::Args, Debug, Default)]
pub struct Arguments {
    /// Ask the server in ORACLE_URL and keep its answers as the golden ones
    #[arg(long)]
    record: bool,
    /// Only scenarios whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// At most so many differences may stay.
pub(crate) const ALLOWED_MAX: usize = 5;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests sent.
    pub steps: usize,
    /// Requests whose answers differ, with the differences as lines.
    pub differing: Vec<(String, Vec<String>)>,
    /// Requests with differences that `allowed.yaml` allows, and nothing else.
    pub allowed: usize,
    /// Rows of `allowed.yaml`.
    pub rows: usize,
}

/// Runs the task.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = tidy::root()?.join("tests/replay");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if arguments.record {
            let steps = record(&root, arguments.only.as_deref()).await?;
            say(&format!("recorded {steps} answers"));
            return Ok(());
        }
        let report = compare(&root, arguments.only.as_deref()).await?;
        for (step, lines) in &report.differing {
            print(step);
            for line in lines {
                print(&format!("    {line}"));
            }
        }
        print(&format!(
            "replay: {} requests, {} differ, {} differ as allowed",
            report.steps,
            report.differing.len(),
            report.allowed
        ));
        ensure!(report.differing.is_empty(), "answers differ from kube-apiserver's");
        Ok(())
    })
}

/// Sends every scenario to our own server, in this process, on a temporary store.
pub async fn compare(root: &Path, only: Option<&str>) -> Result<Report> {
    let server = Server::ours().await?;
    let allowed = Allowed::read(&root.join("allowed.yaml"))?;
    ensure!(allowed.len() <= ALLOWED_MAX, "allowed.yaml has more than {ALLOWED_MAX} rows");
    let mut report = Report { rows: allowed.len(), ..Report::default() };
    for case in case::read(&root.join("cases"), only)? {
        let file = root.join("golden").join(format!("{}.json", case.name));
        let golden = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let golden: BTreeMap<String, Value> = serde_json::from_slice(&golden)?;
        for (step, answer) in play(&case, &server).await? {
            report.steps += 1;
            let name = format!("{}/{step}", case.name);
            let Some(expected) = golden.get(&step) else { bail!("{name}: no golden answer; record it") };
            let (lines, tolerated) = allowed.filter(&name, difference::of(expected, &answer));
            if !lines.is_empty() {
                report.differing.push((name, lines));
            } else if tolerated {
                report.allowed += 1;
            }
        }
    }
    Ok(report)
}

async fn record(root: &Path, only: Option<&str>) -> Result<usize> {
    let server = Server::oracle()?;
    let mut steps = 0;
    for case in case::read(&root.join("cases"), only)? {
        let answers = play(&case, &server).await?;
        steps += answers.len();
        let golden: BTreeMap<String, Value> = answers.into_iter().collect();
        let file = root.join("golden").join(format!("{}.json", case.name));
        let text = serde_json::to_string_pretty(&golden)? + "\n";
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(steps)
}

/// Plays one scenario in a namespace of its own; the answers come back normalised, in order.
async fn play(case: &Case, server: &Server) -> Result<Vec<(String, Value)>> {
    let run: String = (0..5).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    let mut variables = BTreeMap::from([("ns".to_owned(), format!("replay-{run}")), ("run".to_owned(), run)]);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": variables["ns"]}});
    let made = server.send(&case::Request::post("/api/v1/namespaces", &namespace)).await?;
    ensure!(made.status == 201, "{}: the namespace could not be made: {}", case.name, made.body);
    let mut answers = Vec::new();
    for step in &case.steps {
        let request = step.request(&variables).with_context(|| format!("{}/{}", case.name, step.name))?;
        let answer = server.send(&request).await.with_context(|| format!("{}/{}", case.name, step.name))?;
        for (name, pointer) in &step.save {
            let value = answer.body.pointer(pointer).and_then(Value::as_str);
            let value = value.with_context(|| {
                format!("{}/{}: nothing to save at {pointer}: {}", case.name, step.name, answer.body)
            })?;
            variables.insert(name.clone(), value.to_owned());
        }
        let mut value = answer.into_value();
        if step.kinds {
            normal::only_our_kinds(&mut value);
        }
        normal::normalise(&mut value, &variables);
        answers.push((step.name.clone(), value));
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole suite, as `make test` runs it.
    #[tokio::test(flavor = "multi_thread")]
    async fn answers_as_kube_apiserver() {
        let root = tidy::root().expect("the repository's root").join("tests/replay");
        let report = compare(&root, None).await.expect("the suite runs");
        assert!(report.steps >= 80, "only {} requests", report.steps);
        assert!(report.differing.is_empty(), "{:#?}", report.differing);
    }
}
