//! What the compiler does not check: which crate may use which, how long files get, whether documents name paths
//! that exist, and whether what a build leaves behind is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The leaves that every crate may use.
const LEAVES: &[&str] = &["contract", "durable", "lifecycle"];

/// Which of our crates a crate may use, beside the leaves.
const EDGES: &[(&str, &[&str])] = &[
    ("apiserver", &["listen", "resources", "store"]),
    ("contract", &[]),
    ("controllers", &["resources"]),
    ("durable", &[]),
    ("fuzz", &["images", "oci", "proxy", "resources", "runtime"]),
    (
        "gantry",
        &[
            "apiserver",
            "controllers",
            "gobuild",
            "images",
            "listen",
            "network",
            "node",
            "oci",
            "proxy",
            "registry",
            "resources",
            "runtime",
            "store",
        ],
    ),
    ("gobuild", &["oci"]),
    ("images", &["oci"]),
    ("lifecycle", &[]),
    ("listen", &["network"]),
    ("network", &[]),
    ("node", &["images", "network", "oci", "registry", "resources", "runtime"]),
    ("oci", &[]),
    ("proxy", &["network", "resources"]),
    ("registry", &["images", "oci"]),
    ("resources", &[]),
    ("runtime", &["images", "oci"]),
    ("store", &[]),
    ("xtask", &["apiserver", "runtime", "store"]),
];

/// Longest source file, in lines.
const LINES_MAX: usize = 1000;

pub(crate) fn run() -> Result<()> {
    let root = root()?;
    let mut findings = edges(&root)?;
    findings.extend(lengths(&root)?);
    findings.extend(documents(&root)?);
    for finding in &findings {
        crate::say(&format!("tidy: {finding}"));
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    crate::say("tidy: crate edges, file lengths and documents are in order");
    Ok(())
}

/// The workspace's folder.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.ancestors().nth(2).context("the workspace has no folder")?;
    Ok(root.to_owned())
}

fn edges(root: &Path) -> Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(may_use) = allowed.get(name) else {
            findings.push(format!("crate {name} has no row in EDGES of tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            // Tests may look at a neighbour; what ships may not.
            let ships = dependency["kind"].is_null();
            if ships && ours.contains(used) && !LEAVES.contains(&used) && !may_use.contains(&used) {
                findings
                    .push(format!("crate {name} must not use {used} (DESIGN's edges; see EDGES of tidy.rs)"));
            }
        }
    }
    Ok(findings)
}

fn lengths(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tracked(root)? {
        if path.ends_with(".rs") {
            let text = std::fs::read_to_string(root.join(&path)).with_context(|| format!("read {path}"))?;
            let lines = text.lines().count();
            if lines > LINES_MAX {
                findings.push(format!("{path} has {lines} lines; above {LINES_MAX} it is two concepts"));
            }
        }
    }
    Ok(findings)
}

/// Every path in backquotes that looks like one of ours exists.
fn documents(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let Ok(text) = std::fs::read_to_string(root.join(document)) else {
            findings.push(format!("{document} is missing"));
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for quoted in line.split('`').skip(1).step_by(2) {
                let ours = ["crates/", "docs/", "examples/", "tests/", "scripts/"]
                    .iter()
                    .any(|at| quoted.starts_with(at));
                let plain = !quoted.contains(['<', '*', ' ', '{']);
                if ours && plain && !root.join(quoted).exists() {
                    findings.push(format!("{document}:{}: {quoted} does not exist", number + 1));
                }
            }
        }
    }
    Ok(findings)
}

fn tracked(root: &Path) -> Result<Vec<String>> {
    let output =
        Command::new("git").arg("ls-files").current_dir(root).output().context("run git ls-files")?;
    let text = String::from_utf8(output.stdout).context("git ls-files")?;
    Ok(text.lines().filter(|path| root.join(path).exists()).map(str::to_owned).collect())
}
