//! Development tasks: `cargo xtask <task>`.

mod accept;
mod bench;
mod demo;
mod disk;
mod facts;
mod flood;
mod fuzz;
mod load;
mod proto;
mod replay;
mod sandbox;
mod tidy;
mod tools;
mod vm;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of gantry")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the ladder of acceptance checks on the release binary
    Accept(accept::Arguments),
    /// Measure the figures, each beside its peer
    Bench(bench::Arguments),
    /// Run the README's walk-through
    Demo,
    /// Generate the table of schema facts from Kubernetes' OpenAPI files
    Facts {
        /// The folder `api/openapi-spec/v3` of k8s.io/kubernetes
        openapi: PathBuf,
    },
    /// Hold connections and leave each undone: the attacker of the rungs `doors` and `floods`
    #[command(hide = true)]
    Flood(flood::Arguments),
    /// Fuzz what reads bytes of others, by libFuzzer
    Fuzz(fuzz::Arguments),
    /// Generate the table of protobuf fields from Kubernetes' Go types
    Proto,
    /// Compare our API server's answers with kube-apiserver's
    Replay(replay::Arguments),
    /// Check what the compiler does not: crate edges, file sizes, paths in documents
    Tidy,
    /// Run suites in a small machine of their own: pure cgroup v2, old kernels, power cuts
    Vm(vm::Arguments),
    /// Generate the table of JSON tags from Kubernetes' Go types
    Wire,
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::wrap_rustc() {
        return code;
    }
    let result = match Arguments::parse().task {
        Task::Accept(arguments) => accept::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Demo => demo::run(),
        Task::Facts { openapi } => facts::run(&openapi),
        Task::Flood(arguments) => flood::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Proto => tidy::root().and_then(|root| proto::run(&root)),
        Task::Replay(arguments) => replay::run(&arguments),
        Task::Tidy => tidy::run(),
        Task::Vm(arguments) => vm::run(&arguments),
        Task::Wire => tidy::root().and_then(|root| wire::run(&root)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a line for a person.
#[expect(clippy::print_stderr, reason = "the one place where tasks speak")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Prints a line of a task's result.
#[expect(clippy::print_stdout, reason = "the one place where tasks print results")]
pub(crate) fn print(line: &str) {
    println!("{line}");
}
