//! The README's walk-through on `examples/hello`, on a copy, with every command shown.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::sandbox::Sandbox;

pub(crate) fn run() -> Result<()> {
    let gantry = crate::tools::gantry()?;
    let sandbox = Sandbox::new(&gantry)?;
    let hello = sandbox.work("hello")?;
    copy(&crate::tidy::root()?.join("examples/hello"), &hello)?;
    let folder = hello.to_str().context("the temporary folder is no text")?;
    show(&sandbox, &["up", folder])?;
    let address = sandbox_address(&sandbox, "hello")?;
    let first = get(&address)?;
    crate::print(&format!("$ curl {address}\n{first}"));
    ensure!(first.contains("Hello, World!"), "the service answered {first:?}");
    let main = hello.join("main.go");
    let source = std::fs::read_to_string(&main)?;
    std::fs::write(&main, source.replace("Hello, World!", "Hello, gantry!"))?;
    show(&sandbox, &["up", folder])?;
    let second = get(&address)?;
    crate::print(&format!("$ curl {address}\n{second}"));
    ensure!(second.contains("Hello, gantry!"), "the new version answered {second:?}");
    for command in [&["scale", "hello", "3"][..], &["ps"], &["history", "hello"], &["rollback", "hello"]] {
        show(&sandbox, command)?;
    }
    let third = get(&address)?;
    crate::print(&format!("$ curl {address}\n{third}"));
    ensure!(third.contains("Hello, World!"), "after the rollback it answered {third:?}");
    let pid = crate::tidy::root()?.join("examples/pid");
    show(&sandbox, &["run", pid.to_str().context("the project's folder is no text")?])?;
    show(&sandbox, &["down", "hello"])?;
    sandbox.end()?;
    crate::print("The demo is over; nothing of it is left on this machine.");
    Ok(())
}

fn show(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    crate::print(&format!("$ gantry {}", arguments.join(" ")));
    let status = sandbox.command(arguments).status().context("start gantry")?;
    ensure!(status.success(), "gantry {}: {status}", arguments.join(" "));
    Ok(())
}

/// Where `gantry ps -o json` says that the service answers.
fn sandbox_address(sandbox: &Sandbox, name: &str) -> Result<String> {
    let text = sandbox.ok(["ps", "-o", "json"])?;
    let list: serde_json::Value = serde_json::from_str(&text).context("read gantry ps -o json")?;
    let rows = list.as_array().or_else(|| list["items"].as_array()).context("gantry ps lists nothing")?;
    let row = rows
        .iter()
        .find(|row| row["name"] == name)
        .with_context(|| format!("gantry ps does not list {name}"))?;
    let url = row["addresses"][0].as_str().with_context(|| format!("{name} has no address"))?;
    Ok(url.trim_start_matches("http://").trim_end_matches('/').replace("localhost", "127.0.0.1"))
}

/// The body of `GET /`.
pub(crate) fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no head")?;
    ensure!(head.contains(" 200 "), "the service answered {head:?}");
    Ok(body.to_owned())
}

/// Copies the files of a folder, not what lies deeper.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
