//! A small machine of Debian's kernels and systemd, on pure cgroup v2, in which suites run that this machine cannot:
//! an old kernel, a reboot, a power cut, a disk that fails, a clock that steps.
//!
//! It has 1.5 GiB of memory, loopback and no other network device. It ends with the process that started it. KVM executes
//! it, on two processors, where processors have it; else QEMU's translator does, on one, ten times slower.

mod agent;
mod cpio;
mod frame;
mod image;
mod inside;
mod machine;
mod nbd;
mod payload;
mod suites;
mod volatile;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use image::Image;
use machine::{Machine, Parts, State, pass_on};
use payload::Payload;
pub(crate) use suites::{SUITES, Trial};

/// How long a command may take inside.
const COMMAND: Duration = Duration::from_secs(3600);
/// The disk for what a machine writes; sparse.
const STATE_BYTES: u64 = 8 << 30;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Run a command inside, with its output and exit code
    Run {
        #[command(flatten)]
        options: Options,
        /// A program to take along, as /payload/bin/NAME; may be given more than once
        #[arg(long = "with", value_name = "FILE")]
        programs: Vec<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run each line of the standard input in the machine's shell
    Shell {
        #[command(flatten)]
        options: Options,
    },
    /// Run a suite; without a name, list them
    Suite {
        name: Option<String>,
        #[command(flatten)]
        options: Options,
        /// Repetitions, in place of the suite's own number
        #[arg(long)]
        times: Option<usize>,
        /// Fewer repetitions
        #[arg(long)]
        short: bool,
        /// Seed of the moments and of what is lost
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// What runs in the machine
    #[command(hide = true)]
    Agent,
    /// A part of a suite, in the machine
    #[command(hide = true)]
    Inside(inside::Arguments),
}

#[derive(clap::Args)]
struct Options {
    /// The beginning of the kernel's release, such as 6.1 [default: the oldest that is supported]
    #[arg(long)]
    kernel: Option<String>,
    /// Take this binary, as it is, instead of a release build of the checkout
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl Options {
    fn gantry(&self) -> Result<PathBuf> {
        self.binary.clone().map_or_else(crate::tools::gantry, Ok)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.task {
        Task::Run { options, programs, command } => {
            let payload = Payload::new(&options.gantry()?)?;
            payload.project()?;
            for program in programs {
                let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
                payload.program(&name, program)?;
            }
            let command: Vec<_> = command.iter().map(String::as_str).collect();
            with_scratch(options.kernel.as_deref(), &payload, |machine| {
                match machine.run(&command, COMMAND, pass_on)? {
                    0 => Ok(()),
                    code => bail!("exit code {code}"),
                }
            })
        }
        Task::Shell { options } => {
            let payload = Payload::new(&options.gantry()?)?;
            payload.project()?;
            with_scratch(options.kernel.as_deref(), &payload, |machine| {
                for line in std::io::stdin().lock().lines() {
                    let code = machine.run(&["sh", "-c", &line?], COMMAND, pass_on)?;
                    if code != 0 {
                        crate::say(&format!("exit code {code}"));
                    }
                }
                Ok(())
            })
        }
        Task::Suite { name, options, times, short, seed } => {
            let Some(name) = name else {
                for suite in SUITES {
                    crate::print(&format!("{:<10} {}", suite.name, suite.about));
                }
                return Ok(());
            };
            let Some(suite) = SUITES.iter().find(|suite| suite.name == name) else {
                bail!("there is no suite {name}");
            };
            let trial = Trial {
                gantry: options.gantry()?,
                kernel: options.kernel.clone(),
                times: *times,
                short: *short,
                seed: *seed,
            };
            crate::print(&format!("{}: {}", suite.name, (suite.run)(&trial)?));
            Ok(())
        }
        Task::Agent => agent::run(),
        Task::Inside(arguments) => inside::run(arguments),
    }
}

/// A machine on a disk that is thrown away after it.
fn with_scratch<T>(
    kernel: Option<&str>,
    payload: &Payload,
    work: impl FnOnce(&mut Machine) -> Result<T>,
) -> Result<T> {
    let image = Image::open()?;
    let folder = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
    let state = folder.path().join("state.img");
    image::empty_file_system(&state, STATE_BYTES)?;
    let disks = vec![("payload", payload.disk()?), ("go", payload::go_disk()?)];
    let parts = Parts { image: &image, kernel, disks, state: State::Scratch(&state), journal: None };
    let mut machine = Machine::boot(&parts)?;
    work(&mut machine)
}
