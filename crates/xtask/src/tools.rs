//! The clients that others wrote: built from their Go modules, or installed from Debian.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where built tools are kept between runs.
pub(crate) fn folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("gantry/tools");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// The release binary, built if it is not current.
pub(crate) fn gantry() -> Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    // What cargo sets for this process would look like a changed environment to build scripts, and half of the
    // dependencies would be built again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO";
        if ours {
            command.env_remove(&name);
        }
    }
    let output = command
        .args(["build", "--release", "--package", "gantry", "--message-format", "json-render-diagnostics"])
        .current_dir(crate::tidy::root()?)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("run cargo build")?;
    if !output.status.success() {
        bail!("cargo build: {}", output.status);
    }
    for line in String::from_utf8_lossy(&output.stdout).lines().rev() {
        let message: serde_json::Value = serde_json::from_str(line).context("read cargo's messages")?;
        if message["target"]["name"] == "gantry"
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("cargo build named no executable")
}

/// A tool that is one main package of a Go module, at a fixed version.
pub(crate) fn go_install(name: &str, package: &str, version: &str) -> Result<PathBuf> {
    let folder = folder()?.join(format!("{name}-{version}"));
    let binary = folder.join(name);
    if binary.exists() {
        return Ok(binary);
    }
    crate::say(&format!("building {name} {version}"));
    let status = Command::new("go")
        .args(["install", &format!("{package}@{version}")])
        .env("GOBIN", &folder)
        .env("GOFLAGS", "-trimpath")
        .status()
        .context("run go install")?;
    if !status.success() {
        bail!("go install {package}@{version}: {status}");
    }
    Ok(binary)
}

/// `crane`, which pushes, pulls, lists and deletes.
pub(crate) fn crane() -> Result<PathBuf> {
    go_install("crane", "github.com/google/go-containerregistry/cmd/crane", "v0.20.6")
}

/// Staging modules that `k8s.io/kubernetes` replaces by its own folders, which a dependent has to repeat.
const STAGING: &[&str] = &[
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "cri-streaming",
    "streaming",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
];

/// A command of Kubernetes 1.36 (`kubectl`, `kube-apiserver`, …), built from its Go module.
pub(crate) fn kubernetes(command: &str) -> Result<PathBuf> {
    const PATCH: &str = "36.3";
    let folder = folder()?.join(format!("kubernetes-1.{PATCH}"));
    let binary = folder.join(command);
    if binary.exists() {
        return Ok(binary);
    }
    crate::say(&format!("building {command} 1.{PATCH}"));
    let module = folder.join(format!("module-{command}"));
    std::fs::create_dir_all(&module)?;
    let mut text = format!("module tools\ngo 1.26\nrequire k8s.io/kubernetes v1.{PATCH}\n");
    for name in STAGING {
        text.push_str(&format!("replace k8s.io/{name} => k8s.io/{name} v0.{PATCH}\n"));
    }
    std::fs::write(module.join("go.mod"), text)?;
    let import = format!("package tools\nimport _ \"k8s.io/kubernetes/cmd/{command}\"\n");
    std::fs::write(module.join("tools.go"), format!("//go:build tools\n\n{import}"))?;
    go(&module, &["mod", "tidy"])?;
    let version = "-X k8s.io/component-base/version";
    let flags = format!("{version}.gitVersion=v1.{PATCH} {version}.gitMajor=1 {version}.gitMinor=36");
    let output = binary.to_str().context("the tools' folder is no text")?;
    go(&module, &["build", "-ldflags", &flags, "-o", output, &format!("k8s.io/kubernetes/cmd/{command}")])?;
    Ok(binary)
}

fn go(folder: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("go").args(arguments).current_dir(folder).output().context("run go")?;
    if !output.status.success() {
        bail!("go {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
