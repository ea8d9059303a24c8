//! What a machine gets to run, on read-only disks: binaries, the project's fixtures, Go.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::image::{file_system, run};

/// Folders of the project that its rungs read.
const PROJECT: [&str; 4] = ["docs", "examples", "tests", "crates/xtask/src/vm/guest"];
/// Parts of Go's own folder that compiling needs.
const GO: [&str; 6] = ["bin", "go.env", "lib", "pkg", "src", "VERSION"];
/// Beside the content, for ext4 itself.
const ROOM_BYTES: u64 = 32 << 20;

/// The content of the payload disk, being put together.
pub(super) struct Payload {
    folder: tempfile::TempDir,
}

impl Payload {
    /// With this program and gantry.
    pub(super) fn new(gantry: &Path) -> Result<Self> {
        // Beside what is linked, not copied, where that is possible.
        let folder = tempfile::Builder::new().prefix("vm-payload-").tempdir()?;
        std::fs::create_dir(folder.path().join("bin"))?;
        let payload = Self { folder };
        payload.program("xtask", &std::env::current_exe()?)?;
        payload.program("gantry", gantry)?;
        Ok(payload)
    }

    /// Adds a program, without what only a debugger reads.
    pub(super) fn program(&self, name: &str, path: &Path) -> Result<()> {
        let to = self.folder.path().join("bin").join(name);
        run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(path)).map(drop)
    }

    /// Adds the project's fixtures, where this program looks for them.
    pub(super) fn project(&self) -> Result<()> {
        let root = crate::tidy::root()?;
        for part in PROJECT {
            let to = self.folder.path().join("project").join(part);
            std::fs::create_dir_all(&to)?;
            run(Command::new("cp").arg("-rT").arg(root.join(part)).arg(to))?;
        }
        let path = root.to_str().context("the project's folder is no text")?;
        std::fs::write(self.folder.path().join("project.path"), path).context("note the project's folder")
    }

    /// Adds the clients that others wrote, which the ladder looks for.
    pub(super) fn tools(&self) -> Result<()> {
        let folder = crate::tools::folder()?;
        for tool in [crate::tools::kubernetes("kubectl")?, crate::tools::crane()?] {
            let below = tool.strip_prefix(&folder).context("a tool outside the tools' folder")?;
            let to = self.folder.path().join("tools").join(below);
            std::fs::create_dir_all(to.parent().context("a tool without a folder")?)?;
            std::fs::copy(&tool, &to).with_context(|| format!("copy {}", tool.display()))?;
        }
        Ok(())
    }

    /// Where the disk is, once it is made.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.path().with_extension("img")
    }

    /// Makes the disk, in a file that goes with this.
    pub(super) fn disk(&self) -> Result<PathBuf> {
        let disk = self.image();
        let content = run(Command::new("du").args(["-sk"]).arg(self.folder.path()))?;
        let kib: u64 = content.split_whitespace().next().context("du said nothing")?.parse()?;
        let bytes = kib * 1024 * 11 / 10 + ROOM_BYTES;
        file_system(self.folder.path(), &disk, &format!("{}K", bytes >> 10))?;
        Ok(disk)
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        // There is none when it was never made.
        let _ = std::fs::remove_file(self.image());
    }
}

/// The disk with Go and a cache in which what the fixtures are made of is compiled; made once for a release of Go.
pub(super) fn go_disk() -> Result<PathBuf> {
    let version = run(Command::new("go").args(["env", "GOVERSION"]))?.trim().to_owned();
    ensure!(!version.is_empty(), "go names no version");
    let disk = crate::tools::folder()?.join(format!("vm-{version}.img"));
    if disk.exists() {
        return Ok(disk);
    }
    crate::say(&format!("making the machine's disk with {version}, once"));
    let folder = tempfile::Builder::new().prefix("vm-go-").tempdir_in(crate::tools::folder()?)?;
    let root = PathBuf::from(run(Command::new("go").args(["env", "GOROOT"]))?.trim());
    let go = folder.path().join("go");
    std::fs::create_dir(&go)?;
    for part in GO {
        run(Command::new("cp").arg("-rL").arg(root.join(part)).arg(&go))?;
    }
    compile_fixtures(&folder.path().join("cache"))?;
    let making = folder.path().with_extension("img");
    file_system(folder.path(), &making, "1G")?;
    std::fs::rename(&making, &disk).context("keep the disk with Go")?;
    Ok(disk)
}

/// As `gantry up` compiles, so that it finds each package.
fn compile_fixtures(cache: &Path) -> Result<()> {
    let root = crate::tidy::root()?;
    let programs = root.join("tests/programs");
    let mut folders = vec![root.join("examples/hello"), root.join("examples/pid")];
    for entry in std::fs::read_dir(&programs).with_context(|| format!("list {}", programs.display()))? {
        folders.push(entry?.path());
    }
    for folder in folders.iter().filter(|folder| folder.join("go.mod").exists()) {
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "/dev/null", "."]);
        go.current_dir(folder).env("GOCACHE", cache).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod");
        // Fixtures that do not compile are there too.
        if let Err(error) = run(&mut go) {
            crate::say(&format!("{}: {error:#}", folder.display()));
        }
    }
    Ok(())
}
