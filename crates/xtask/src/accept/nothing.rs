//! Rung `nothing-left`: after `daemon stop --all` and `uninstall --purge` nothing of ours is left.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Seen, Setting, fixtures};
use crate::sandbox::Sandbox;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let before = Machine::look(None)?;
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up(&sandbox, 1)?;
    sandbox.ok(["scale", "hello", "3"])?;
    let instance = std::fs::read_to_string(sandbox.state().join("instance"))?;
    let during = Machine::look(Some(instance.trim()))?;
    // A crash on the way must not leave more than an orderly end.
    sandbox.kill(sandbox.daemon_pid()?)?;
    let state = sandbox.state();
    sandbox.end()?;
    let after = Machine::look(Some(instance.trim()))?;
    let mut left = after.new_since(&before);
    if state.exists() {
        left.push(format!("{} exists", state.display()));
    }
    let seen = during.new_since(&before).len();
    let figure = match left.is_empty() {
        true => format!("{seen} things of ours were on the machine, none is left"),
        false => format!("{} of {seen} left: {}", left.len(), left.join(", ")),
    };
    Ok(Seen::new(left.is_empty() && seen > 0, figure))
}

/// What of the machine we could have changed.
struct Machine {
    things: BTreeSet<String>,
}

impl Machine {
    fn look(instance: Option<&str>) -> Result<Self> {
        let mut things = BTreeSet::new();
        for line in std::fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            things.insert(format!("mount {point}"));
        }
        for line in std::fs::read_to_string("/proc/thread-self/net/dev")?.lines().skip(2) {
            things.insert(format!("link {}", line.split(':').next().unwrap_or_default().trim()));
        }
        for line in std::fs::read_to_string("/proc/thread-self/net/route")?.lines().skip(1) {
            things.insert(format!("route {line}"));
        }
        cgroups(Path::new("/sys/fs/cgroup"), instance, 0, &mut things);
        for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let ours =
                words.first().is_some_and(|program| program.ends_with("/gantry") || program == "gantry");
            if ours {
                things.insert(format!(
                    "process {} {}",
                    entry.file_name().to_string_lossy(),
                    words[1..].join(" ")
                ));
            }
        }
        Ok(Self { things })
    }

    fn new_since(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

fn cgroups(folder: &Path, instance: Option<&str>, depth: usize, things: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if instance.is_some_and(|instance| name.contains(instance)) {
            things.insert(format!("cgroup {}", entry.path().display()));
        }
        if depth < 4 {
            cgroups(&entry.path(), instance, depth + 1, things);
        }
    }
}
