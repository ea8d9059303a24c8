//! gantry: from a Go program's source to a running, balanced service.

mod access;
mod client;
mod commands;
mod console;
mod context;
mod control;
mod daemon;
mod deploy;
mod failure;
mod follow;
mod format;
mod kernel;
mod launch;
mod modes;
mod output;
mod printer;
mod publish;
mod reads;
mod service;
mod settings;
mod sudo;
mod version;
mod workload;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A keeper lives as long as its container: it must not carry what the other commands initialise.
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if first.as_ref().is_some_and(|first| first == "keeper") {
        modes::private_process();
        let arguments: Vec<_> = arguments.collect();
        return runtime::keeper_main(&arguments);
    }
    // The first provider that is installed is the process's only one; nothing has asked for one yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match first.as_ref().and_then(|first| first.to_str()) {
        Some("proxy") => {
            modes::private_process();
            return daemon::proxy_main(arguments);
        }
        Some("takeover") => {
            modes::private_process();
            return daemon::takeover_main(arguments);
        }
        _ => {}
    }
    let hooks =
        commands::Hooks { daemon: daemon::run, hint: daemon::hint, remove_outside: daemon::remove_outside };
    commands::run(std::env::args_os(), hooks)
}
