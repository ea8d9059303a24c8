//! Rung `bad-input`: bad input. Each case ends in one `error:`, a `hint:`, a non-zero exit code, and changes nothing. What it
//! says stands in `tests/input/<case>.txt`.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Seen, Setting};
use crate::sandbox::{Sandbox, output};

/// A case gets the sandbox and a folder of its own, and returns the command that has to fail.
type Case = fn(&Sandbox, &Path) -> Result<Command>;

const CASES: &[(&str, Case)] = &[
    ("compiler-error", |sandbox, folder| {
        go(folder, "main.go", "package main\n\nfunc main() {\n\tundefined()\n}\n")?;
        Ok(up(sandbox, folder))
    }),
    ("empty-folder", |sandbox, folder| Ok(up(sandbox, folder))),
    ("foreign-state-folder", |sandbox, folder| {
        let state = folder.join("state");
        std::fs::create_dir_all(&state)?;
        std::os::unix::fs::chown(&state, Some(65534), Some(65534))?;
        let mut command = sandbox.command(["daemon", "start", "--state-dir"]);
        command.arg(state);
        Ok(command)
    }),
    ("lying-tar", |sandbox, folder| {
        std::fs::write(folder.join("image.tar"), b"this is no tar archive at all")?;
        let mut command = sandbox.command(["image", "load", "--input"]);
        command.arg(folder.join("image.tar"));
        Ok(command)
    }),
    ("module-not-found", |sandbox, _| {
        let mut command = sandbox.command(["up", "example.invalid/nothing@v1.0.0"]);
        command.env("GOPROXY", "off").env("GOFLAGS", "-mod=mod");
        Ok(command)
    }),
    ("name-is-no-label", |sandbox, folder| {
        hello(folder)?;
        let mut command = up(sandbox, folder);
        command.args(["--name", "Not_A_Label"]);
        Ok(command)
    }),
    ("needs-cgo", |sandbox, folder| {
        go(
            folder,
            "main.go",
            "package main\n\n// int one(void) { return 1; }\nimport \"C\"\n\nfunc main() { println(C.one()) }\n",
        )?;
        Ok(up(sandbox, folder))
    }),
    ("no-go", |sandbox, folder| {
        hello(folder)?;
        // gantry also looks where Go's installers put it: these are empty for this command alone.
        let script = "for usual in /usr/local/go /usr/lib/go /snap/bin; do \
                      test ! -d $usual || mount -t tmpfs gantry-test $usual || exit 99; done; \
                      PATH=/nonexistent; exec \"$0\" up \"$1\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(&sandbox.gantry).arg(folder);
        command.env("GANTRY_STATE", sandbox.state());
        Ok(command)
    }),
    ("no-main-package", |sandbox, folder| {
        go(folder, "lib.go", "package lib\n\nfunc F() {}\n")?;
        Ok(up(sandbox, folder))
    }),
    ("no-root", |sandbox, folder| {
        // The build's folder may be closed to others.
        let gantry = folder.join("gantry");
        std::fs::copy(&sandbox.gantry, &gantry).context("copy gantry")?;
        let mut command = Command::new(gantry);
        command.args(["daemon", "start", "--state-dir"]).arg(folder.join("state")).uid(65534).gid(65534);
        Ok(command)
    }),
    ("port-taken", |sandbox, folder| {
        hello(folder)?;
        let mut command = up(sandbox, folder);
        command.args(["-p", "18099:8080"]);
        Ok(command)
    }),
    ("several-main-packages", |sandbox, folder| {
        std::fs::write(folder.join("go.mod"), "module example.com/several\n\ngo 1.25\n")?;
        for name in ["one", "two"] {
            std::fs::create_dir_all(folder.join("cmd").join(name))?;
            go(&folder.join("cmd").join(name), "main.go", "package main\n\nfunc main() {}\n")?;
        }
        Ok(up(sandbox, folder))
    }),
    ("torn-tar", |sandbox, folder| {
        let whole = folder.join("whole.tar");
        hello(folder)?;
        let built = output({
            let mut command = sandbox.command(["build", "--output"]);
            command.arg(&whole).arg(folder);
            command
        })?;
        ensure!(built.status.success(), "gantry build: {}", String::from_utf8_lossy(&built.stderr));
        let bytes = std::fs::read(&whole)?;
        std::fs::write(folder.join("torn.tar"), &bytes[..bytes.len() / 2])?;
        let mut command = sandbox.command(["image", "load", "--input"]);
        command.arg(folder.join("torn.tar"));
        Ok(command)
    }),
    ("unknown-field", |sandbox, folder| {
        let manifest =
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n  colour: red\ndata:\n  a: b\n";
        std::fs::write(folder.join("manifest.yaml"), manifest)?;
        let mut command = sandbox.command(["up", "-f"]);
        command.arg(folder.join("manifest.yaml"));
        Ok(command)
    }),
];

/// Cases on a disk that is full, in front of a service that serves.
const FULL: &[(&str, Case)] = &[
    ("full-disk-apply", |sandbox, folder| {
        let mut command = sandbox.command(["up", "-f"]);
        command.arg(folder.join("manifest.yaml"));
        Ok(command)
    }),
    ("full-disk-daemon", |sandbox, folder| {
        let mut command = sandbox.command(["daemon", "start", "--state-dir"]);
        command.arg(folder.join("state"));
        Ok(command)
    }),
    ("full-disk-go", |sandbox, folder| {
        let mut command = up(sandbox, &folder.join("changed"));
        command.env("TMPDIR", folder);
        Ok(command)
    }),
    ("full-disk-image", |sandbox, folder| Ok(up(sandbox, &folder.join("changed")))),
    ("full-disk-load", |sandbox, folder| {
        let mut command = sandbox.command(["image", "load", "--input"]);
        command.arg(folder.join("changed.tar"));
        Ok(command)
    }),
    ("full-disk-output", |sandbox, folder| {
        let mut command = sandbox.command(["build", "--output"]);
        command.arg(folder.join("image.tar")).arg(folder.join("changed"));
        Ok(command)
    }),
    ("full-disk-save", |sandbox, folder| {
        let mut command = sandbox.command(["image", "save", "hello", "--output"]);
        command.arg(folder.join("image.tar"));
        Ok(command)
    }),
];

/// Bytes of the disk that gets full: a state folder with two small images.
const DISK: u64 = 48 << 20;

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let mut findings = Vec::new();
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let taken = TcpListener::bind("127.0.0.1:18099").context("take a port")?;
    check(setting, &sandbox, CASES, |name| sandbox.work(&format!("cases/{name}")), &mut findings)?;
    drop(taken);
    sandbox.end()?;
    full(setting, &mut findings)?;
    let figure = format!(
        "{} cases; {}",
        CASES.len() + FULL.len(),
        if findings.is_empty() { "as in the snapshots".to_owned() } else { findings.join("; ") }
    );
    Ok(Seen::new(findings.is_empty(), figure))
}

/// More objects of the manifest's size than the store can have set aside.
const RESERVE_OBJECTS_MAX: usize = 64;

/// The cases on a full disk; afterwards there is room again, and the service serves and can be replaced.
fn full(setting: &Setting, findings: &mut Vec<String>) -> Result<()> {
    let sandbox = Sandbox::on_disk(&setting.gantry, DISK)?;
    let disk = sandbox.disk()?;
    let folder = sandbox.work("cases")?;
    hello(&folder.join("hello"))?;
    hello(&folder.join("changed"))?;
    let changed = folder.join("changed/main.go");
    let source = std::fs::read_to_string(&changed)?;
    std::fs::write(&changed, source.replace("Hello, World!", "Hello, room!"))?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the temporary folder is no text");
    // The name is the folder's: the changed program is the next version of the same service.
    let up = |name: &str| sandbox.ok(["up", &text(&folder.join(name))?, "--name", "hello"]);
    sandbox.ok([
        "build",
        "--output",
        &text(&folder.join("changed.tar"))?,
        &text(&folder.join("changed"))?,
    ])?;
    up("hello")?;
    let large = "x".repeat(256 << 10);
    let manifest =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: large\ndata:\n  a: {large}\n");
    std::fs::write(folder.join("manifest.yaml"), &manifest)?;
    let address = sandbox.address("hello")?.to_string();
    disk.fill()?;
    fill_reserve(&sandbox, &manifest)?;
    check(setting, &sandbox, FULL, |_| Ok(folder.clone()), findings)?;
    let answer = crate::demo::get(&address).context("the service, while the disk is full")?;
    ensure!(answer.contains("Hello, World!"), "while the disk was full the service answered {answer:?}");
    disk.free()?;
    up("changed").context("after there was room again")?;
    let answer = crate::demo::get(&address)?;
    ensure!(answer.contains("Hello, room!"), "after there was room again the service answered {answer:?}");
    sandbox.end()
}

/// Objects until one is refused: a store on a full disk lives on what it has set aside.
fn fill_reserve(sandbox: &Sandbox, manifest: &str) -> Result<()> {
    for number in 0..RESERVE_OBJECTS_MAX {
        let manifest = manifest.replace("name: large", &format!("name: reserve-{number}"));
        // From its input: there is no room for a file.
        let mut create = Command::new(crate::tools::kubernetes("kubectl")?);
        create.arg("--kubeconfig").arg(sandbox.state().join("kubeconfig")).args(["create", "-f", "-"]);
        let (reader, mut writer) = std::io::pipe()?;
        create.stdin(reader);
        let feeding = std::thread::spawn(move || writer.write_all(manifest.as_bytes()));
        let said = output(create)?;
        // A client that was refused early reads no further.
        let _ = feeding.join();
        if !said.status.success() {
            return Ok(());
        }
    }
    bail!("{RESERVE_OBJECTS_MAX} objects were taken on a full disk")
}

/// Runs cases, each in the folder that `place` gives it, and compares what they say with their snapshots.
fn check(
    setting: &Setting,
    sandbox: &Sandbox,
    cases: &[(&str, Case)],
    place: impl Fn(&str) -> Result<PathBuf>,
    findings: &mut Vec<String>,
) -> Result<()> {
    for (name, case) in cases {
        let folder = place(name)?;
        let before = objects(sandbox)?;
        let said = case(sandbox, &folder).and_then(output).with_context(|| (*name).to_owned())?;
        let text = normal(&String::from_utf8_lossy(&said.stderr), &folder, sandbox.folder());
        if said.status.success() {
            findings.push(format!("{name} succeeded"));
        }
        let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        if count("error:") != 1 || count("hint:") < 1 {
            findings.push(format!("{name}: not one error: with a hint:"));
        }
        let snapshot = snapshot(name)?;
        if setting.bless {
            std::fs::write(&snapshot, &text)?;
        } else if std::fs::read_to_string(&snapshot).unwrap_or_default() != text {
            findings.push(format!("{name} says something else than {}:\n{text}", snapshot.display()));
        }
        let after = objects(sandbox)?;
        if before != after {
            findings.push(format!("{name}: objects changed: {before:?} became {after:?}"));
        }
    }
    Ok(())
}

fn up(sandbox: &Sandbox, folder: &Path) -> Command {
    let mut command = sandbox.command(["up"]);
    command.arg(folder);
    command
}

fn go(folder: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::write(folder.join(name), text).with_context(|| format!("write {name}"))
}

fn hello(folder: &Path) -> Result<()> {
    crate::demo::copy(&crate::tidy::root()?.join("examples/hello"), folder)
}

fn snapshot(name: &str) -> Result<PathBuf> {
    let folder = crate::tidy::root()?.join("tests/input");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(format!("{name}.txt")))
}

/// Paths and times that differ from run to run.
fn normal(text: &str, folder: &Path, sandbox: &Path) -> String {
    let mut out = String::new();
    let text = text.replace(&folder.display().to_string(), "FOLDER");
    let text = text.replace(&sandbox.display().to_string(), "SANDBOX");
    let text = numbered(numbered(numbered(text, ".staged-"), "go-build"), "process ");
    for line in text.lines() {
        let words: Vec<_> = line
            .split_inclusive(' ')
            .map(|word| {
                let seconds =
                    word.trim_end().strip_suffix('s').is_some_and(|number| number.parse::<f64>().is_ok());
                if seconds { "0.00s".to_owned() } else { word.to_owned() }
            })
            .collect();
        out.push_str(words.concat().trim_end());
        out.push('\n');
    }
    out
}

/// Without the number that follows a word.
fn numbered(text: String, word: &str) -> String {
    let mut parts = text.split(word);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(word);
        out.push('N');
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-'));
    }
    out
}

/// What the API server holds of what the commands could have made.
fn objects(sandbox: &Sandbox) -> Result<Vec<String>> {
    let list = sandbox.kubectl(["get", "deployments,services,configmaps,pods", "-A", "-o", "name"])?;
    let images = sandbox.ok(["image", "ls", "-o", "json"])?;
    if serde_json::from_str::<serde_json::Value>(&images).is_err() {
        bail!("gantry image ls -o json is no JSON");
    }
    Ok(list.lines().map(str::to_owned).chain([images]).collect())
}
