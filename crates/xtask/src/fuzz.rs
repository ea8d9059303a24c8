//! `cargo xtask fuzz`: a target of `crates/fuzz` under libFuzzer, on stable Rust.
//!
//! Only our own crates are instrumented: this program stands before rustc (`RUSTC_WORKSPACE_WRAPPER`) and adds the flags,
//! so what they depend on is shared with every other build.

mod corpus;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// Set when this program is to act as the wrapper of rustc.
const WRAPPER: &str = "GANTRY_FUZZ_WRAPPER";
/// What a target reads from here to know which one it is (`fuzz::TARGET_VARIABLE`).
const TARGET: &str = "GANTRY_FUZZ_TARGET";
/// Coverage as libFuzzer wants it, and code that is not as slow as for a debugger.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Copt-level=2",
    "-Ccodegen-units=1",
];
/// Of one input: bytes, seconds; and memory in mebibytes. Beyond one of the last two the fuzzer has found something.
const INPUT_BYTES_MAX: usize = 16 * 1024;
const INPUT_SECONDS_MAX: u64 = 5;
const MEMORY_MEBIBYTES_MAX: u64 = 1024;
/// Longest that building and replaying may take.
const REPLAY_SECONDS_MAX: u64 = 1200;
/// Of an input that is kept in the project.
const KEPT_BYTES_MAX: usize = 2048;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A target of crates/fuzz, or `all`
    target: String,
    /// Seconds for each target
    #[arg(default_value_t = 600)]
    seconds: u64,
    /// Add the inputs that reach new code to tests/fuzz
    #[arg(long)]
    keep: bool,
}

/// Acts as the wrapper of rustc, if that is what this process was started for.
pub(crate) fn wrap_rustc() -> Option<ExitCode> {
    std::env::var_os(WRAPPER)?;
    let mut words = std::env::args_os().skip(1);
    let mut command = Command::new(words.next()?);
    let mut words: Vec<_> = words.collect();
    // Build scripts and macros run in the compiler's world, where no fuzzer is: only what names a target is ours.
    let is_ours =
        words.iter().any(|word| word == "--target") && words.iter().any(|word| word == "--crate-name");
    // libFuzzer asks the dynamic linker for the functions that it stands before: the program alone is not static.
    if is_ours && words.windows(2).any(|pair| pair[0] == "--crate-type" && pair[1] == "bin") {
        for word in words.iter_mut().filter(|word| *word == "target-feature=+crt-static") {
            *word = "target-feature=-crt-static".into();
        }
    }
    command.args(&words);
    if is_ours {
        command.args(FLAGS);
    }
    let error = command.exec();
    crate::say(&format!("error: start rustc: {error}"));
    Some(ExitCode::FAILURE)
}

impl Arguments {
    /// Every target, for so many seconds; nothing is kept.
    pub(crate) fn all(seconds: u64) -> Self {
        Self { target: "all".to_owned(), seconds, keep: false }
    }
}

/// Every input that is kept, through its target, once: an ordinary test.
pub(crate) fn replay() -> Result<()> {
    let mut command = crate::tools::cargo();
    command.current_dir(crate::tidy::root()?).args(["test", "--package", "fuzz", "--test", "corpora"]);
    let output = crate::sandbox::output_within(command, REPLAY_SECONDS_MAX)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "the corpora do not end well: {}", said.trim());
    Ok(())
}

/// How many targets there are: each has its corpus.
pub(crate) fn targets() -> Result<usize> {
    Ok(std::fs::read_dir(crate::tidy::root()?.join("tests/fuzz")).context("list tests/fuzz")?.count())
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = crate::tidy::root()?;
    let binary = build(&root)?;
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root.join("tests/fuzz")).context("list tests/fuzz")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| arguments.target == "all" || *name == arguments.target);
    ensure!(!names.is_empty(), "there is no target {}", arguments.target);
    let mut found = Vec::new();
    for name in names {
        match fuzz(&root, &binary, &name, arguments) {
            Ok(()) => crate::print(&format!("{name}: nothing found in {} s", arguments.seconds)),
            Err(error) => found.push(format!("{name}: {error:#}")),
        }
    }
    ensure!(found.is_empty(), "{}", found.join("; "));
    Ok(())
}

fn build(root: &Path) -> Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = crate::tools::cargo();
    command.current_dir(root).args(["build", "--package", "fuzz", "--features", "fuzzer", "--bin", "fuzz"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.env("RUSTC_WORKSPACE_WRAPPER", own).env(WRAPPER, "1").stderr(std::process::Stdio::inherit());
    let output = command.output().context("run cargo build")?;
    ensure!(output.status.success(), "the fuzzer does not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = built.filter_map(|line| Some(line["executable"].as_str()?.to_owned())).next_back();
    path.map(Into::into).context("cargo names no fuzzer")
}

fn fuzz(root: &Path, binary: &Path, name: &str, arguments: &Arguments) -> Result<()> {
    let corpus = root.join("tests/fuzz").join(name);
    let work = tempfile::Builder::new().prefix("gantry-fuzz-").tempdir().context("make a folder")?;
    let fresh = work.path().join("fresh");
    std::fs::create_dir(&fresh)?;
    let start = |extra: &[String]| -> Result<bool> {
        let mut command = Command::new(binary);
        command.env(TARGET, name).env_remove(WRAPPER).current_dir(work.path()).args(extra);
        command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
        command.arg(format!("-rss_limit_mb={MEMORY_MEBIBYTES_MAX}"));
        command.arg(format!("-artifact_prefix={}/finding-{name}-", std::env::temp_dir().display()));
        Ok(command.status().context("start the fuzzer")?.success())
    };
    let text = |path: &Path| path.display().to_string();
    let seconds = format!("-max_total_time={}", arguments.seconds);
    let bytes = format!("-max_len={INPUT_BYTES_MAX}");
    let passed = start(&[seconds, bytes, "-print_final_stats=1".to_owned(), text(&fresh), text(&corpus)])?;
    if arguments.keep {
        corpus::keep(&corpus, &fresh, work.path(), KEPT_BYTES_MAX, start)?;
    }
    let temporary = std::env::temp_dir();
    ensure!(
        passed,
        "see finding-{name}-* in {}: shrink it, mend it, and keep it in tests/fuzz",
        temporary.display()
    );
    Ok(())
}
