//! `cargo xtask bench`: how fast and how small, each figure beside its peer in one run, interleaved.
//!
//! One file a figure and a row in [`FIGURES`]. Each figure runs in a network namespace of its own, so that ports are
//! free and dockerd's rules stay inside. A peer that cannot be set up makes its rows unmet and says why.

pub(crate) mod api;
mod apply;
mod bounds;
mod cycle;
mod deaths;
mod deletion;
mod edit;
mod go;
mod keeper;
mod manager;
mod memory;
pub(crate) mod peers;
mod pod;
pub(crate) mod process;
mod proxying;
mod push;
mod row;
pub(crate) mod samples;
mod start;
mod upgrade;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub(crate) use row::Row;

/// Fewer rounds say nothing about a median.
const ROUNDS_MIN: usize = 10;
/// A figure that takes longer is not measured. Ten rounds take a minute or two.
const FIGURE_SECONDS_MAX: u64 = 240;

/// Which figures, and how often.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The figures to measure; all when none is named
    figures: Vec<String>,
    /// Rounds of each figure; fewer than 10 are only good for trying
    #[arg(long, default_value_t = ROUNDS_MIN)]
    rounds: usize,
    /// Measure this binary instead of the release build
    #[arg(long, conflicts_with = "write")]
    gantry: Option<PathBuf>,
    /// Write the rows into docs/bench.md and README.md
    #[arg(long)]
    write: bool,
}

/// What a figure is given.
#[derive(Clone)]
pub(crate) struct Setting {
    /// The release binary.
    pub(crate) gantry: PathBuf,
    pub(crate) rounds: usize,
}

/// A figure of the table "How fast, how small".
pub(crate) struct Figure {
    /// What it is called on the command line and in the table.
    pub(crate) name: &'static str,
    /// What is measured.
    pub(crate) about: &'static str,
    /// Who is measured beside it.
    pub(crate) peer: &'static str,
    /// What has to be reached, as the issue words it.
    pub(crate) bar: &'static str,
    pub(crate) run: fn(&Setting) -> Result<Vec<Row>>,
}

/// The peer of what nobody else has.
pub(crate) const NO_PEER: &str = "–";

/// Every figure, in the table's order.
pub(crate) const FIGURES: &[Figure] = &[
    edit::FIGURE,
    push::FIGURE,
    start::FIGURE,
    memory::FIGURE,
    keeper::FIGURE,
    pod::FIGURE,
    deletion::FIGURE,
    deaths::FIGURE,
    cycle::FIGURE,
    apply::FIGURE,
    proxying::FIGURE,
    bounds::FIGURE,
    upgrade::FIGURE,
];

/// Figures whose peers are there already.
const UNFETCHED: [&str; 2] = [proxying::FIGURE.name, bounds::FIGURE.name];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.figures {
        let names: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
        ensure!(names.contains(&&**name), "there is no figure {name}; there are {}", names.join(", "));
    }
    let gantry = arguments.gantry.clone().map_or_else(crate::tools::gantry, Ok)?;
    let setting = Setting { gantry, rounds: arguments.rounds.max(1) };
    let rows = measure(&setting, &arguments.figures);
    if arguments.write {
        ensure!(setting.rounds >= ROUNDS_MIN, "what is written down takes {ROUNDS_MIN} rounds at least");
        row::write(&rows, setting.rounds)?;
    }
    let unmet = rows.iter().filter(|row| !row.met).count();
    crate::say(&format!("{} rows met, {unmet} unmet", rows.len() - unmet));
    Ok(())
}

/// Measures the named figures, or all, and prints each row as it comes.
pub(crate) fn measure(setting: &Setting, names: &[String]) -> Vec<Row> {
    let wanted = |figure: &&'static Figure| names.is_empty() || names.iter().any(|name| name == figure.name);
    let fetched = |figure: &Figure| figure.peer != NO_PEER && !UNFETCHED.contains(&figure.name);
    if FIGURES.iter().filter(wanted).any(fetched) {
        prepare();
    }
    even();
    crate::print(row::HEAD);
    let mut all = Vec::new();
    for figure in FIGURES.iter().filter(wanted) {
        let started = Instant::now();
        let rows = in_namespace(figure, setting)
            .unwrap_or_else(|error| vec![Row::failed(figure.about, figure.bar, &error)]);
        for mut row in rows {
            row.figure = figure.name;
            crate::print(&row.line());
            all.push(row);
        }
        crate::say(&format!("{}: {:.1} s", figure.name, started.elapsed().as_secs_f64()));
    }
    all
}

/// Builds what comes from outside, before the figures are cut off from it. What fails here fails again, and is told,
/// in the figure that needs it.
fn prepare() {
    for command in ["kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        if let Err(error) = crate::tools::kubernetes(command) {
            crate::say(&format!("{command}: {error:#}"));
        }
    }
    for built in [crate::tools::crane(), peers::ko()] {
        if let Err(error) = built {
            crate::say(&format!("{error:#}"));
        }
    }
}

/// Gantry's processes and the peers are in sessions of their own: if ours had another priority among sessions, whoever
/// runs inside ours would be measured with it.
fn even() {
    // Absent where the kernel does not group by session; then there is nothing to even out.
    if let Err(error) = std::fs::write("/proc/self/autogroup", "0")
        && error.kind() != std::io::ErrorKind::NotFound
    {
        crate::say(&format!("priority of this session: {error}"));
    }
}

/// Measures a figure, or gives up on it: a hang is a finding, and the figures behind it are measured.
fn in_namespace(figure: &'static Figure, setting: &Setting) -> Result<Vec<Row>> {
    let (sender, receiver) = mpsc::channel();
    let setting = setting.clone();
    let worker = std::thread::spawn(move || {
        let rows = crate::sandbox::enter_network_namespace().and_then(|()| {
            (figure.run)(&setting).with_context(|| format!("{} beside {}", figure.name, figure.peer))
        });
        // Nobody asks any more after the deadline.
        let _ = sender.send(rows);
    });
    match receiver.recv_timeout(Duration::from_secs(FIGURE_SECONDS_MAX)) {
        Ok(rows) => {
            let _ = worker.join();
            rows
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the figure panicked"),
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("no end within {FIGURE_SECONDS_MAX} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_unique_and_documented() {
        for (index, figure) in FIGURES.iter().enumerate() {
            assert!(!figure.about.is_empty() && !figure.peer.is_empty() && !figure.bar.is_empty());
            assert!(FIGURES[..index].iter().all(|other| other.name != figure.name), "{}", figure.name);
        }
    }
}
