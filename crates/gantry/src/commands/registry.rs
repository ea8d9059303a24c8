//! `gantry registry`: the daemon's registry for other clients.

use std::{io::Read as _, process::ExitCode};

use clap::{ArgMatches, Subcommand as _};
use registry::{Credential, credentials};

use super::{Command, down::running, parse};
use crate::{
    context::{Context, docker_config, registry_failure},
    failure::{Failure, Result},
};

/// The user that goes with the registry's token where a client wants a name.
const USER: &str = "gantry";
/// Bytes of a password on stdin.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

pub static COMMAND: Command = Command {
    name: "registry",
    about: "Give other clients access to the registry, and gantry to others",
    examples: &[
        ("gantry registry login", "docker, crane and skopeo may push to the daemon's"),
        ("gantry registry login ghcr.io -u me --password-stdin", "gantry may pull and push there"),
        ("gantry registry logout ghcr.io", "forget that"),
    ],
    arguments: |command| {
        Action::augment_subcommands(command).subcommand_required(true).arg_required_else_help(true)
    },
    run: |context, matches| context.block_on(registry(context, matches)),
};

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Write a credential to Docker's configuration file
    Login(Login),
    /// Remove a credential from it
    Logout(Logout),
}

#[derive(Clone, Debug, clap::Args)]
struct Login {
    /// The registry [default: the daemon's]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
    /// User name
    #[arg(long, short = 'u', value_name = "NAME", requires = "registry")]
    username: Option<String>,
    /// Read the password or token from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Logout {
    /// The registry [default: the daemon's]
    #[arg(value_name = "REGISTRY")]
    registry: Option<String>,
}

async fn registry(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let action: Action = parse(matches)?;
    let path = docker_config().ok_or_else(|| {
        Failure::new("there is no home folder for Docker's configuration")
            .hint("set DOCKER_CONFIG=DIR".to_owned())
    })?;
    let save = |registry: &str, credential: Option<&Credential>| {
        credentials::save(&path, registry, credential)
            .map_err(|error| Failure::from_error(&error).hint(error.hint()))
    };
    match action {
        Action::Login(Login { registry: Some(registry), username: Some(username), .. }) => {
            let mut password = String::new();
            let read = std::io::stdin().take(PASSWORD_BYTES_MAX).read_to_string(&mut password);
            read.map_err(|error| Failure::from_error(&error).context("read the password from stdin"))?;
            let credential = Credential::Basic { username, password: password.trim_end().to_owned() };
            let client = context.registry_outside()?;
            client.check(&registry, credential.clone()).await.map_err(registry_failure)?;
            save(&registry, Some(&credential))?;
            context.printer.step("Login", &format!("{registry}, in {}", path.display()), None);
        }
        Action::Login(Login { registry: Some(registry), .. }) => {
            return Err(Failure::usage(format!("no user for {registry}"))
                .hint(format!("gantry registry login {registry} -u NAME --password-stdin")));
        }
        Action::Login(_) => {
            let connection = running(context).await?;
            let credential =
                Credential::Basic { username: USER.to_owned(), password: connection.access.token()? };
            let hosts = hosts(&connection.endpoints.registry);
            for host in &hosts {
                save(host, Some(&credential))?;
            }
            context.printer.step("Login", &format!("{}, in {}", hosts.join(" and "), path.display()), None);
        }
        Action::Logout(Logout { registry: Some(registry) }) => save(&registry, None)?,
        Action::Logout(_) => {
            let connection = running(context).await?;
            for host in hosts(&connection.endpoints.registry) {
                save(&host, None)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The ways in which clients write the registry's address.
fn hosts(url: &str) -> Vec<String> {
    let host = url.rsplit_once("//").map_or(url, |(_, host)| host).trim_end_matches('/');
    let port = host.rsplit_once(':').map(|(_, port)| port).unwrap_or_default();
    vec![host.to_owned(), format!("localhost:{port}")]
}
