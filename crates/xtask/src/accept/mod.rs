//! The ladder of acceptance checks, on the release binary.
//!
//! Each rung prints one line: met or unmet, what was seen, the seconds it took. A rung that cannot run is unmet.
//! Rungs are called by their names (`cargo xtask accept doors`); an issue adds rungs, the earlier ones stay.

mod backup;
mod chaos;
mod desync;
mod digest;
mod doors;
mod figures;
mod fixtures;
mod floods;
mod fuzz;
mod input;
mod kill;
mod kubectl;
mod modes;
mod nothing;
mod path;
mod programs;
mod replace;
mod store;
pub(crate) mod upgrade;
mod vm;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

pub(crate) use store::{Register, Traces};

/// Which rungs, and how much of them.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The rungs to run; all when none is named
    rungs: Vec<String>,
    /// The cases of these rungs to run, by a part of their name
    #[arg(long)]
    only: Option<String>,
    /// Check this binary, as it is, instead of a release build of the checkout
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Fewer repetitions, and only the rungs that `make test` contains
    #[arg(long)]
    short: bool,
    /// Seed of the moments at which things are killed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the messages of `bad-input` as their snapshots, and what `programs` saw into docs/programs.md
    #[arg(long)]
    bless: bool,
}

/// What a rung is given.
pub(crate) struct Setting {
    /// The release binary.
    pub(crate) gantry: PathBuf,
    pub(crate) short: bool,
    pub(crate) seed: u64,
    pub(crate) bless: bool,
    /// A part of the names of the cases to run; all when there is none.
    pub(crate) only: Option<String>,
}

impl Setting {
    /// `full` repetitions, or `short` in the short form.
    pub(crate) fn times(&self, full: usize, short: usize) -> usize {
        if self.short { short } else { full }
    }

    /// Whether the case of this name is to run.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.as_deref().is_none_or(|part| case.contains(part))
    }
}

/// What was seen.
pub(crate) struct Seen {
    pub(crate) met: bool,
    pub(crate) figure: String,
}

impl Seen {
    pub(crate) fn new(met: bool, figure: impl Into<String>) -> Self {
        Self { met, figure: figure.into() }
    }
}

struct Rung {
    /// Unique; lower case and hyphens.
    name: &'static str,
    /// Part of the short form.
    short: bool,
    /// Runs in a network namespace of its own; a rung that fetches modules cannot.
    isolated: bool,
    run: fn(&Setting) -> Result<Seen>,
}

/// In the order in which they run.
const RUNGS: &[Rung] = &[
    Rung { name: "path", short: true, isolated: true, run: path::run },
    Rung { name: "kill", short: true, isolated: true, run: kill::run },
    Rung { name: "replace", short: true, isolated: true, run: replace::run },
    Rung { name: "store", short: true, isolated: true, run: store::run },
    Rung { name: "same-digest", short: true, isolated: true, run: digest::run },
    Rung { name: kubectl::NAME, short: false, isolated: true, run: kubectl::run },
    Rung { name: "programs", short: false, isolated: false, run: programs::run },
    Rung { name: "bad-input", short: false, isolated: true, run: input::run },
    Rung { name: "figures", short: false, isolated: false, run: figures::run },
    Rung { name: "nothing-left", short: false, isolated: true, run: nothing::run },
    Rung { name: "backup", short: true, isolated: true, run: backup::run },
    Rung { name: "upgrade", short: false, isolated: true, run: upgrade::run },
    Rung { name: "desync", short: true, isolated: true, run: desync::run },
    Rung { name: "modes", short: true, isolated: true, run: modes::run },
    Rung { name: "chaos", short: true, isolated: true, run: chaos::run },
    Rung { name: "vm", short: false, isolated: false, run: vm::run },
    Rung { name: "doors", short: true, isolated: true, run: doors::run },
    Rung { name: "floods", short: true, isolated: true, run: floods::run },
    Rung { name: "fuzz", short: false, isolated: false, run: fuzz::run },
];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    for name in &arguments.rungs {
        if !RUNGS.iter().any(|rung| rung.name == name) {
            let names: Vec<_> = RUNGS.iter().map(|rung| rung.name).collect();
            bail!("there is no rung {name}, but {}", names.join(", "));
        }
    }
    let setting = Setting {
        gantry: match &arguments.binary {
            Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display()))?,
            None => crate::tools::gantry()?,
        },
        short: arguments.short,
        seed: arguments.seed,
        bless: arguments.bless,
        only: arguments.only.clone(),
    };
    let wanted = |rung: &Rung| match arguments.rungs.as_slice() {
        [] => rung.short || !arguments.short,
        some => some.iter().any(|name| name == rung.name),
    };
    // Everything that comes from outside is fetched before a rung is cut off from it.
    crate::tools::kubernetes("kubectl")?;
    crate::tools::crane()?;
    if RUNGS.iter().any(|rung| rung.name == kubectl::NAME && wanted(rung)) {
        kubectl::fetch()?;
    }
    let mut unmet = 0;
    let mut run = 0;
    for rung in RUNGS {
        if !wanted(rung) {
            continue;
        }
        run += 1;
        let started = Instant::now();
        let seen = in_thread(rung, &setting);
        let seconds = started.elapsed().as_secs_f64();
        let (word, figure) = match seen {
            Ok(Seen { met: true, figure }) => ("met", figure),
            Ok(Seen { met: false, figure }) => ("UNMET", figure),
            Err(error) => ("UNMET", format!("{error:#}")),
        };
        unmet += usize::from(word != "met");
        crate::print(&format!("{:<14} {word:<5} {seconds:>7.1} s  {figure}", rung.name));
    }
    crate::print(&format!("{} passed, {unmet} failed", run - unmet));
    if unmet > 0 {
        bail!("{unmet} rungs are unmet");
    }
    Ok(())
}

/// A namespace belongs to a thread and what it starts: each rung has its own.
fn in_thread(rung: &Rung, setting: &Setting) -> Result<Seen> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if rung.isolated {
                crate::sandbox::enter_network_namespace()?;
            }
            (rung.run)(setting)
        });
        match worker.join() {
            Ok(seen) => seen,
            Err(_) => bail!("the rung panicked"),
        }
    })
}

/// A runtime whose threads are the calling thread's children, and so in its namespace.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_have_names_of_their_own() {
        let mut names: Vec<_> = RUNGS.iter().map(|rung| rung.name).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
