//! Why an executable cannot run in an image: the kernel says only "no such file or directory".
//!
//! Reads the image's tree as the container would see it: links stay inside, nothing outside is ever opened. Nothing
//! in the image is trusted: [`elf`] checks every bound.

mod elf;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::rootfs::resolve;
use elf::Elf;

/// Why a program cannot run, in the terms of its image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrunnable {
    #[error("the image has no {path}")]
    Missing { path: PathBuf },
    #[error("{program:?} is in none of the folders of PATH ({path})")]
    NotInPath { program: String, path: String },
    #[error("{path} is not a file")]
    NotAFile { path: PathBuf },
    #[error("{path} is not executable (mode {mode:04o})")]
    NotExecutable { path: PathBuf, mode: u32 },
    #[error("{path} is built for {found}, this machine is {machine}")]
    Architecture { path: PathBuf, found: String, machine: &'static str },
    #[error("{path} is neither an ELF executable nor a script: it begins with {begin}")]
    Format { path: PathBuf, begin: String },
    #[error("{path} is damaged: {what}")]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{path} is dynamically linked, and the image lacks its interpreter {interpreter}")]
    Interpreter { path: PathBuf, interpreter: PathBuf },
    #[error("{path} needs the shared library {library}, which the image lacks")]
    Library { path: PathBuf, library: String },
    #[error("{path} is a script, and the image lacks its interpreter {interpreter}")]
    ScriptInterpreter { path: PathBuf, interpreter: PathBuf },
}

impl Unrunnable {
    /// The fix.
    pub fn hint(&self) -> String {
        match self {
            Unrunnable::Missing { path } => {
                format!("add {} to the image, or name another program", path.display())
            }
            Unrunnable::NotInPath { .. } => "name the program with its full path, or set PATH".into(),
            Unrunnable::NotAFile { .. } => "name the executable file itself".into(),
            Unrunnable::NotExecutable { path, .. } => {
                format!("chmod +x {} before the image is built", path.display())
            }
            Unrunnable::Architecture { machine, .. } => format!("build for GOOS=linux GOARCH={machine}"),
            Unrunnable::Format { .. } => "a script must begin with #! and its interpreter".into(),
            Unrunnable::Damaged { .. } => "build the image anew".into(),
            Unrunnable::Interpreter { .. } | Unrunnable::Library { .. } => {
                "build a static executable (CGO_ENABLED=0 go build), or use a base image that has the file"
                    .into()
            }
            Unrunnable::ScriptInterpreter { interpreter, .. } => {
                format!("use a base image that has {}", interpreter.display())
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
const MACHINE: (&str, u16) = ("amd64", elf::X86_64);
#[cfg(target_arch = "aarch64")]
const MACHINE: (&str, u16) = ("arm64", elf::AARCH64);

/// Scripts may name scripts as interpreters, so deep (execve(2)).
const MAX_SCRIPTS: usize = 5;
/// A program's libraries and theirs; nobody's program needs more.
const MAX_LIBRARIES: usize = 512;

/// Looks for a reason; `None`: it looks runnable. `path` is the container's PATH, `cwd` its folder.
pub fn explain(tree: &Path, program: &str, path: &str, cwd: &Path) -> Option<Unrunnable> {
    let image = Image { tree };
    let program = if program.contains('/') {
        cwd.join(program)
    } else {
        let found = path.split(':').map(|dir| cwd.join(dir).join(program)).find(|path| {
            image.metadata(path).is_some_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        });
        match found {
            Some(found) => found,
            None => {
                return Some(Unrunnable::NotInPath { program: program.to_owned(), path: path.to_owned() });
            }
        }
    };
    image.check(&program, 0)
}

struct Image<'t> {
    tree: &'t Path,
}

impl Image<'_> {
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        Some(self.tree.join(resolve(self.tree, path).ok()?))
    }

    fn metadata(&self, path: &Path) -> Option<fs::Metadata> {
        fs::symlink_metadata(self.inside(path)?).ok()
    }

    fn has(&self, path: &Path) -> bool {
        self.metadata(path).is_some_and(|metadata| metadata.is_file())
    }

    fn open(&self, path: &Path) -> Option<File> {
        // Only regular files: a FIFO would block.
        if !self.has(path) {
            return None;
        }
        File::open(self.inside(path)?).ok()
    }

    fn check(&self, path: &Path, scripts: usize) -> Option<Unrunnable> {
        let owned = || path.to_owned();
        let Some(metadata) = self.metadata(path) else { return Some(Unrunnable::Missing { path: owned() }) };
        if !metadata.is_file() {
            return Some(Unrunnable::NotAFile { path: owned() });
        }
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o111 == 0 {
            return Some(Unrunnable::NotExecutable { path: owned(), mode });
        }
        let mut begin = Vec::new();
        self.open(path)?.take(256).read_to_end(&mut begin).ok()?;
        if let Some(line) = begin.strip_prefix(b"#!") {
            return self.check_script(path, line, scripts);
        }
        if !begin.starts_with(elf::MAGIC) {
            let begin: String = begin.iter().take(8).map(|byte| byte.escape_ascii().to_string()).collect();
            let begin = if begin.is_empty() { "nothing".to_owned() } else { format!("\"{begin}\"") };
            return Some(Unrunnable::Format { path: owned(), begin });
        }
        self.check_elf(path)
    }

    fn check_script(&self, path: &Path, line: &[u8], scripts: usize) -> Option<Unrunnable> {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let Some(interpreter) = line.split([' ', '\t']).find(|word| !word.is_empty()) else {
            return Some(Unrunnable::Damaged { path: path.to_owned(), what: "no interpreter after #!" });
        };
        // A carriage return is part of the name, as the kernel sees it.
        let interpreter = Path::new(interpreter);
        if self.metadata(interpreter).is_none() {
            return Some(Unrunnable::ScriptInterpreter {
                path: path.to_owned(),
                interpreter: PathBuf::from(interpreter.to_string_lossy().escape_debug().to_string()),
            });
        }
        if scripts >= MAX_SCRIPTS {
            return Some(Unrunnable::Damaged {
                path: path.to_owned(),
                what: "its interpreters go round in circles",
            });
        }
        self.check(interpreter, scripts + 1)
    }

    fn check_elf(&self, path: &Path) -> Option<Unrunnable> {
        let program = match self.read_elf(path) {
            Ok(program) => program,
            Err(what) => return Some(Unrunnable::Damaged { path: path.to_owned(), what }),
        };
        if !program.is_64_bit || program.machine != MACHINE.1 {
            return Some(Unrunnable::Architecture {
                path: path.to_owned(),
                found: program.architecture(),
                machine: MACHINE.0,
            });
        }
        let interpreter = program.interpreter.clone()?;
        if !self.has(Path::new(&interpreter)) {
            return Some(Unrunnable::Interpreter { path: path.to_owned(), interpreter: interpreter.into() });
        }
        self.check_libraries(path, program)
    }

    /// Breadth first through what each library needs, as ld.so looks for them.
    fn check_libraries(&self, path: &Path, program: Elf) -> Option<Unrunnable> {
        let mut checked: Vec<String> = Vec::new();
        let own_dirs = run_path(&program, path);
        let mut pending = vec![(path.to_owned(), program)];
        while let Some((of, elf)) = pending.pop() {
            let mut dirs = run_path(&elf, &of);
            dirs.extend(own_dirs.iter().cloned());
            dirs.extend(self.library_dirs());
            for library in elf.needed {
                if checked.contains(&library) || checked.len() >= MAX_LIBRARIES {
                    continue;
                }
                checked.push(library.clone());
                let found = if library.contains('/') {
                    Some(PathBuf::from(&library)).filter(|path| self.has(path))
                } else {
                    dirs.iter().map(|dir| dir.join(&library)).find(|path| self.has(path))
                };
                match found {
                    None => return Some(Unrunnable::Library { path: of, library }),
                    Some(found) => {
                        if let Ok(elf) = self.read_elf(&found) {
                            pending.push((found, elf));
                        }
                    }
                }
            }
        }
        None
    }

    /// Where a loader looks by itself: the common folders, Debian's per-architecture ones, and ld.so.conf's.
    fn library_dirs(&self) -> Vec<PathBuf> {
        let triplet = if MACHINE.1 == elf::X86_64 { "x86_64-linux-gnu" } else { "aarch64-linux-gnu" };
        let mut dirs: Vec<PathBuf> =
            ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from).to_vec();
        dirs.extend([format!("/lib/{triplet}"), format!("/usr/lib/{triplet}")].map(PathBuf::from));
        let mut files = vec![PathBuf::from("/etc/ld.so.conf")];
        if let Some(dir) = self.inside(Path::new("/etc/ld.so.conf.d"))
            && let Ok(entries) = fs::read_dir(dir)
        {
            files.extend(
                entries
                    .flatten()
                    .take(64)
                    .map(|entry| Path::new("/etc/ld.so.conf.d").join(entry.file_name())),
            );
        }
        for file in files {
            let mut text = String::new();
            let read = self.open(&file).map(|file| file.take(1 << 16).read_to_string(&mut text));
            if matches!(read, Some(Ok(_))) {
                dirs.extend(
                    text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from),
                );
            }
        }
        dirs
    }

    fn read_elf(&self, path: &Path) -> Result<Elf, &'static str> {
        let file = self.open(path).ok_or("it cannot be read")?;
        Elf::parse(|offset, buffer| file.read_exact_at(buffer, offset).is_ok())
    }
}

/// DT_RUNPATH or DT_RPATH, `$ORIGIN` replaced.
fn run_path(elf: &Elf, path: &Path) -> Vec<PathBuf> {
    let origin = path.parent().unwrap_or(Path::new("/")).to_string_lossy();
    elf.run_path
        .iter()
        .flat_map(|list| list.split(':'))
        .filter(|dir| !dir.is_empty())
        .map(|dir| PathBuf::from(dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const PATH: &str = "/usr/bin:/bin";

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("bin")).unwrap();
            Tree(dir)
        }

        fn file(&self, path: &str, bytes: &[u8], mode: u32) -> &Self {
            let path = self.0.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            self
        }

        fn explain(&self, program: &str) -> Option<Unrunnable> {
            explain(self.0.path(), program, PATH, Path::new("/"))
        }
    }

    #[test]
    fn files_that_are_not_there_or_not_executable() {
        let tree = Tree::new();
        tree.file("/bin/data", b"hello", 0o644).file("/bin/text", b"echo hi\n", 0o755);
        assert_eq!(tree.explain("/app").unwrap(), Unrunnable::Missing { path: "/app".into() });
        assert!(matches!(tree.explain("app").unwrap(), Unrunnable::NotInPath { .. }));
        assert_eq!(tree.explain("/bin").unwrap(), Unrunnable::NotAFile { path: "/bin".into() });
        assert_eq!(
            tree.explain("/bin/data").unwrap(),
            Unrunnable::NotExecutable { path: "/bin/data".into(), mode: 0o644 }
        );
        assert_eq!(
            tree.explain("text").unwrap().to_string(),
            "/bin/text is neither an ELF executable nor a script: it begins with \"echo hi\\n\""
        );
    }

    #[test]
    fn scripts_need_their_interpreter() {
        let tree = Tree::new();
        tree.file("/run.sh", b"#! /bin/bash -e\n", 0o755).file("/dos.sh", b"#!/bin/sh\r\n", 0o755);
        tree.file("/round", b"#!/round\n", 0o755).file("/bin/sh", &elf::tests::executable(&[], None), 0o755);
        assert_eq!(
            tree.explain("/run.sh").unwrap(),
            Unrunnable::ScriptInterpreter { path: "/run.sh".into(), interpreter: "/bin/bash".into() }
        );
        assert_eq!(
            tree.explain("/dos.sh").unwrap().to_string(),
            "/dos.sh is a script, and the image lacks its interpreter /bin/sh\\r"
        );
        assert!(matches!(tree.explain("/round").unwrap(), Unrunnable::Damaged { .. }));
        assert_eq!(tree.file("/ok.sh", b"#!/bin/sh\n", 0o755).explain("/ok.sh"), None);
    }

    #[test]
    fn dynamic_executables_need_interpreter_and_libraries() {
        let tree = Tree::new();
        let loader = "/lib64/ld-linux-x86-64.so.2";
        tree.file("/app", &elf::tests::executable(&["libc.so.6", "libfoo.so.1"], Some(loader)), 0o755);
        assert_eq!(
            tree.explain("/app").unwrap(),
            Unrunnable::Interpreter { path: "/app".into(), interpreter: loader.into() }
        );
        tree.file("/usr/lib64/ld-linux-x86-64.so.2", &elf::tests::executable(&[], None), 0o755);
        symlink("usr/lib64", tree.0.path().join("lib64")).unwrap();
        assert_eq!(
            tree.explain("/app").unwrap(),
            Unrunnable::Library { path: "/app".into(), library: "libc.so.6".into() }
        );
        tree.file("/lib/libc.so.6", &elf::tests::executable(&[], None), 0o644);
        tree.file("/opt/lib/libfoo.so.1", &elf::tests::executable(&["libbar.so"], None), 0o644);
        tree.file("/etc/ld.so.conf.d/opt.conf", b"# ours\n/opt/lib\n", 0o644);
        assert_eq!(
            tree.explain("/app").unwrap(),
            Unrunnable::Library { path: "/opt/lib/libfoo.so.1".into(), library: "libbar.so".into() }
        );
        assert!(tree.explain("/app").unwrap().hint().contains("CGO_ENABLED=0"));
    }

    #[test]
    fn a_foreign_architecture_is_named() {
        let tree = Tree::new();
        let mut bytes = elf::tests::executable(&[], None);
        bytes[18] = 243;
        assert_eq!(
            tree.file("/app", &bytes, 0o755).explain("/app").unwrap(),
            Unrunnable::Architecture { path: "/app".into(), found: "riscv64".into(), machine: MACHINE.0 }
        );
    }

    #[test]
    fn the_machines_own_shell_is_runnable() {
        assert_eq!(explain(Path::new("/"), "sh", PATH, Path::new("/")), None);
    }
}
