//! A row of the table: what was measured, beside whom, against which bar; and the table in `docs/bench.md`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// The table's head.
pub(crate) const HEAD: &str = "| Figure | What | gantry | Peer | Bar | |\n|---|---|---|---|---|---|";

/// One measured row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// The name of its figure.
    pub(crate) figure: &'static str,
    pub(crate) about: String,
    pub(crate) ours: String,
    pub(crate) peer: String,
    pub(crate) bar: String,
    pub(crate) met: bool,
}

/// What one value is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bar {
    /// At most so much.
    pub(crate) most: Option<f64>,
    /// At most so many times the peer's.
    pub(crate) ratio: Option<f64>,
}

impl Bar {
    pub(crate) fn most(most: f64) -> Self {
        Self { most: Some(most), ratio: None }
    }

    pub(crate) fn ratio(ratio: f64) -> Self {
        Self { most: None, ratio: Some(ratio) }
    }

    pub(crate) fn both(most: f64, ratio: f64) -> Self {
        Self { most: Some(most), ratio: Some(ratio) }
    }

    /// Whether `ours` is within the bar; a peer that was not measured fails a ratio.
    pub(crate) fn is_met(&self, ours: f64, peer: Option<f64>) -> bool {
        let most = self.most.is_none_or(|most| ours <= most);
        let ratio = self.ratio.is_none_or(|ratio| peer.is_some_and(|peer| ours <= peer * ratio));
        ours.is_finite() && most && ratio
    }

    fn words(&self, unit: &str) -> String {
        let most = self.most.map(|most| format!("≤ {} {unit}", number(most)));
        let ratio = self.ratio.map(|ratio| format!("≤ {ratio} ×"));
        most.into_iter().chain(ratio).collect::<Vec<_>>().join("; ")
    }
}

impl Row {
    /// A row with one value a side.
    pub(crate) fn compare(about: &str, unit: &str, ours: f64, peer: &Result<f64>, bar: Bar) -> Self {
        Self {
            figure: "",
            about: about.to_owned(),
            ours: format!("{} {unit}", number(ours)),
            peer: beside(unit, ours, peer),
            bar: bar.words(unit),
            met: bar.is_met(ours, peer.as_ref().ok().copied()),
        }
    }

    /// Two rows' worth of values in one: median and p99, say.
    pub(crate) fn and(mut self, word: &str, other: Self) -> Self {
        self.ours = format!("{}; {word} {}", self.ours, other.ours);
        self.peer = format!("{}; {word} {}", self.peer, other.peer);
        self.bar = format!("{}; {word} {}", self.bar, other.bar);
        self.met &= other.met;
        self
    }

    /// Nothing was measured.
    pub(crate) fn failed(about: &str, bar: &str, error: &anyhow::Error) -> Self {
        let reason = cell(&format!("not measured: {error:#}"));
        Self {
            figure: "",
            about: about.to_owned(),
            ours: reason,
            peer: "–".to_owned(),
            bar: bar.to_owned(),
            met: false,
        }
    }

    /// The row as Markdown.
    pub(crate) fn line(&self) -> String {
        let met = if self.met { "met" } else { "UNMET" };
        format!("| {} | {} | {} | {} | {} | {met} |", self.figure, self.about, self.ours, self.peer, self.bar)
    }
}

/// The peer's value and the ratio to it, or why there is none.
pub(crate) fn beside(unit: &str, ours: f64, peer: &Result<f64>) -> String {
    match peer {
        Ok(peer) => format!("{} {unit} ({:.2} ×)", number(*peer), ours / peer),
        Err(error) => cell(&format!("not measured: {error:#}")),
    }
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "–".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Text that breaks no table.
fn cell(text: &str) -> String {
    text.replace('|', "/").lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Between these the README shows the table.
const MARKS: [&str; 2] = ["<!-- bench -->\n", "<!-- /bench -->"];

/// Replaces the measured figures' rows in `docs/bench.md`, the others stay; and shows the table in the README.
pub(crate) fn write(rows: &[Row], rounds: usize) -> Result<()> {
    let root = crate::tidy::root()?;
    let path = root.join("docs/bench.md");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let new = document(&old, rows, rounds);
    std::fs::write(&path, &new).with_context(|| format!("write {}", path.display()))?;
    let path = root.join("README.md");
    let readme = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let shown = show(&readme, &new).context("README.md has no place for the table")?;
    std::fs::write(&path, shown).with_context(|| format!("write {}", path.display()))
}

/// The README with the document's table.
fn show(readme: &str, document: &str) -> Option<String> {
    let (before, rest) = readme.split_once(MARKS[0])?;
    let (_, after) = rest.split_once(MARKS[1])?;
    let table: String =
        document.lines().filter(|line| line.starts_with('|')).map(|line| format!("{line}\n")).collect();
    Some(format!("{before}{}{table}{}{after}", MARKS[0], MARKS[1]))
}

fn document(old: &str, rows: &[Row], rounds: usize) -> String {
    let mut text = format!(
        "# How fast, how small\n\nWritten by `make bench` (`cargo xtask bench --write`): each figure beside its peer in one run, \
         interleaved,\n{rounds} rounds or more, medians unless it says p99. In brackets: gantry's share of the peer's \
         figure.\n\n{}\n\n{HEAD}\n",
        machine()
    );
    for figure in super::FIGURES {
        let new: Vec<_> = rows.iter().filter(|row| row.figure == figure.name).map(Row::line).collect();
        let start = format!("| {} |", figure.name);
        let kept = old.lines().filter(|line| line.starts_with(&start)).map(str::to_owned);
        for line in if new.is_empty() { kept.collect() } else { new } {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// What was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes >> 20);
    let load = read("/proc/loadavg");
    let load = load.split(' ').nth(1).unwrap_or("?").to_owned();
    format!(
        "The machine: {cores} cores, {memory} GiB, Linux {}; load average over the last five minutes of the run {load}.",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_needs_its_peer_only_for_a_ratio() {
        assert!(Bar::most(2.0).is_met(2.0, None) && !Bar::most(2.0).is_met(2.1, None));
        assert!(Bar::both(2.0, 0.5).is_met(1.0, Some(2.0)) && !Bar::both(2.0, 0.5).is_met(1.5, Some(2.0)));
        assert!(!Bar::ratio(0.5).is_met(1.0, None) && !Bar::most(2.0).is_met(f64::NAN, None));
    }

    #[test]
    fn rows_that_were_not_measured_again_stay() {
        let name = super::super::FIGURES[0].name;
        let other = super::super::FIGURES[1].name;
        let old = format!("{HEAD}\n| {name} | old |\n| {other} | kept |\n");
        let mut row = Row::compare("what", "ms", 10.0, &Ok(20.0), Bar::both(12.0, 0.6));
        row.figure = name;
        let text = document(&old, &[row], 10);
        assert!(text.contains("| what | 10.0 ms | 20.0 ms (0.50 ×) | ≤ 12.0 ms; ≤ 0.6 × | met |"), "{text}");
        assert!(text.contains("kept") && !text.contains("old"), "{text}");
        let readme = show("a\n<!-- bench -->\nold\n<!-- /bench -->\nb\n", &text).unwrap();
        assert!(
            readme.starts_with("a\n<!-- bench -->\n| Figure |") && readme.ends_with("<!-- /bench -->\nb\n"),
            "{readme}"
        );
        assert!(readme.contains("kept") && !readme.contains("old"), "{readme}");
    }
}
