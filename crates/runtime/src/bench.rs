//! The cycle that is compared with `runc run`: create, start, wait, delete, through the keeper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::spec::{Access, Capabilities, Log, Namespace, Resources, Rootfs, Seccomp, Spec, User};
use crate::{Runtime, create};

/// Why a cycle failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("create")]
    Create(#[from] create::Error),
    #[error("run")]
    Run(#[from] crate::Error),
    #[error("the program ended with {0:?}")]
    Exit(crate::Exit),
}

/// What one cycle took, step by step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cycle {
    pub create: Duration,
    pub start: Duration,
    pub wait: Duration,
    pub delete: Duration,
}

impl Cycle {
    pub fn total(&self) -> Duration {
        self.create + self.start + self.wait + self.delete
    }
}

/// A container as gantry generates them: restricted, limited, with a read-only root and a network namespace.
pub fn spec(dir: &Path, id: &str, tree: &Path, args: &[&str]) -> Spec {
    Spec {
        id: id.to_owned(),
        bundle: dir.join(id),
        rootfs: Rootfs { tree: tree.to_owned(), access: Access::ReadOnly },
        args: args.iter().map(|arg| arg.to_string()).collect(),
        env: Vec::new(),
        cwd: PathBuf::new(),
        user: User { uid: 65532, gid: 65532, groups: Vec::new() },
        hostname: String::new(),
        mounts: Vec::new(),
        resources: Resources {
            cpu_request_milli: Some(100),
            cpu_limit_milli: Some(1000),
            memory_limit_bytes: Some(64 << 20),
            pids_limit: None,
        },
        capabilities: Capabilities { add: Vec::new(), drop: vec!["ALL".into()] },
        no_new_privileges: true,
        seccomp: Seccomp::RuntimeDefault,
        privileged: false,
        netns: Namespace::New,
        users: crate::spec::Users::Host,
        stdin: false,
        tty: false,
        log: Log { path: dir.join(format!("{id}.log")), max_bytes: 1 << 20, max_files: 2 },
        oom_score_adj: None,
        rlimits: Vec::new(),
        sysctls: Default::default(),
        annotations: BTreeMap::new(),
    }
}

/// One cycle of a program that ends with 0. `dir` is below the runtime's state folder.
pub async fn bench_cycle(
    runtime: &Runtime,
    dir: &Path,
    id: &str,
    tree: &Path,
    args: &[&str],
) -> Result<Cycle, Error> {
    let begin = Instant::now();
    let container = runtime.create(spec(dir, id, tree, args)).await?;
    let created = Instant::now();
    container.start().await?;
    let started = Instant::now();
    let exit = container.wait().await?;
    let ended = Instant::now();
    container.delete().await?;
    if exit.code != Some(0) {
        return Err(Error::Exit(exit));
    }
    Ok(Cycle {
        create: created - begin,
        start: started - created,
        wait: ended - started,
        delete: ended.elapsed(),
    })
}
