//! A relay that believes the first `Content-Length` and nothing else, and passes the rest on unread: what this rung has to
//! catch.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long it waits for the rest of what a client says.
const PATIENCE: Duration = Duration::from_millis(200);

/// Listens at `address` in front of `backend`, until the process ends.
pub(super) fn start(address: SocketAddr, backend: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || relay(stream, backend));
        }
    });
    Ok(())
}

/// Everything that the client sends counts as one request; it gets the first response.
fn relay(mut client: TcpStream, backend: SocketAddr) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    // The end, or the time is over: either way that was it.
    let _ = client.read_to_end(&mut request);
    let mut upstream = TcpStream::connect(backend)?;
    upstream.set_read_timeout(Some(Duration::from_secs(10)))?;
    upstream.write_all(&request)?;
    upstream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let end = text.find("\r\n\r\n").map_or(answer.len(), |end| end + 4);
    let length = text[..end.min(text.len())].lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let first = (end + length.unwrap_or(0)).min(answer.len());
    client.write_all(&answer[..first])
}
