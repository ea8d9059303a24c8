//! A registry alone, for suites that others wrote: `serve STATE ADDRESS [TOKEN]`.

use std::{error::Error, path::Path};

use registry::server::{Auth, router};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, address, tokens @ ..] = arguments.as_slice() else {
        return Err("usage: serve STATE ADDRESS [TOKEN]".into());
    };
    let store = images::Store::open(Path::new(state))?;
    let auth = if tokens.is_empty() { Auth::Open } else { Auth::Writes(tokens.to_vec()) };
    axum::serve(TcpListener::bind(address.as_str()).await?, router(store, auth)).await?;
    Ok(())
}
