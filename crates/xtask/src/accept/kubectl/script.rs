//! `tests/kubectl/*.yaml`: what a person types, and what has to come of it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;

/// Steps that build on each other, played in a folder and a namespace of their own.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    steps: Vec<Step>,
}

/// A command line for bash, and what it has to say. Patterns are regular expressions in which `^` and `$` match at
/// lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) run: String,
    /// The exit code.
    #[serde(default)]
    pub(super) exit: i32,
    /// Standard output matches each.
    #[serde(default)]
    pub(super) out: Vec<Pattern>,
    /// Standard error matches each.
    #[serde(default)]
    pub(super) err: Vec<Pattern>,
    /// Neither matches any.
    #[serde(default)]
    pub(super) not: Vec<Pattern>,
    /// Standard output, without the white space at its end, becomes this variable of the later steps.
    pub(super) save: Option<String>,
    /// The step is repeated for so many seconds until it holds.
    pub(super) within: Option<u64>,
    /// What happens while the command runs.
    pub(super) during: Option<During>,
}

/// For commands that follow something.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct During {
    /// Once the command has said this …
    pub(super) when: Pattern,
    /// … this runs, and has to succeed.
    pub(super) then: Option<String>,
    /// Once the command has said this it is interrupted; without it, it has to end by itself.
    pub(super) until: Option<Pattern>,
}

/// A regular expression.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Pattern(Regex);

impl TryFrom<String> for Pattern {
    type Error = regex::Error;

    fn try_from(text: String) -> Result<Self, regex::Error> {
        RegexBuilder::new(&text).multi_line(true).build().map(Self)
    }
}

impl Pattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// What a command has said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

/// What Go prints for a value that is not there, and kubectl for one that it cannot read.
const HOLES: &[&str] = &["<unknown>", "<nil>", "%!"];

impl Step {
    /// Everything in which `said` is not what was asked for.
    pub(super) fn faults(&self, said: &Said) -> Vec<String> {
        let mut faults = Vec::new();
        if self.during.as_ref().is_none_or(|during| during.until.is_none()) && said.code != Some(self.exit) {
            faults.push(format!("exit code {:?} instead of {}", said.code, self.exit));
        }
        let streams = [("standard output", &self.out, &said.out), ("standard error", &self.err, &said.err)];
        for (name, patterns, text) in streams {
            for pattern in patterns.iter().filter(|pattern| !pattern.matches(text)) {
                faults.push(format!("{name} lacks {}", pattern.0));
            }
        }
        for pattern in self.not.iter().filter(|one| one.matches(&said.out) || one.matches(&said.err)) {
            faults.push(format!("says {}", pattern.0));
        }
        if self.run.contains("kubectl describe") {
            // The one field that is empty in real clusters too.
            let lines = said.out.lines().filter(|line| !line.starts_with("Event Time:"));
            for line in lines.filter(|line| HOLES.iter().any(|hole| line.contains(hole))) {
                faults.push(format!("a hole: {line}"));
            }
        }
        faults
    }

    /// A step has to be able to fail by what is said, or by an exit code that kubectl does not give for success.
    fn asserts(&self) -> bool {
        self.exit != 0 || !self.out.is_empty() || !self.err.is_empty()
    }
}

/// All scripts of a folder, sorted by name.
pub(super) fn read(folder: &Path) -> Result<Vec<Script>> {
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let file: File =
            serde_yaml_ng::from_str(&text).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = file.steps.iter().find(|step| !step.asserts()) {
            ensure!(false, "{name}: a step that asserts nothing: {}", step.run);
        }
        scripts.push(Script { name, steps: file.steps });
    }
    scripts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(scripts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Step {
        serde_yaml_ng::from_str(text).unwrap()
    }

    fn said(code: i32, out: &str, err: &str) -> Said {
        Said { code: Some(code), out: out.to_owned(), err: err.to_owned() }
    }

    #[test]
    fn the_scripts_are_read() {
        let scripts = read(&crate::tidy::root().unwrap().join("tests/kubectl")).unwrap();
        assert!(scripts.iter().map(|script| script.steps.len()).sum::<usize>() >= 100);
    }

    #[test]
    fn each_expectation_can_fail() {
        let step = step("{run: kubectl get x, exit: 1, out: ['^a$'], err: [b], not: [c]}");
        assert!(step.faults(&said(1, "z\na\n", "b")).is_empty());
        assert_eq!(step.faults(&said(0, "za", "")).len(), 3);
        assert_eq!(step.faults(&said(1, "a", "bc")).len(), 1);
    }

    #[test]
    fn a_description_has_no_holes() {
        let step = step("{run: kubectl describe pod, out: [.]}");
        assert!(step.faults(&said(0, "Event Time:  <nil>\nName: a", "")).is_empty());
        assert_eq!(step.faults(&said(0, "AGE\n<unknown>", "")).len(), 1);
    }

    #[test]
    fn a_step_without_expectation_is_refused() {
        assert!(!step("{run: 'true'}").asserts() && !step("{run: 'true', not: [x]}").asserts());
        assert!(step("{run: 'false', exit: 1}").asserts());
    }
}
