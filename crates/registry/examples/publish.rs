//! How long a program takes from its file to a digest in a registry on this machine: `publish FILE [ROUNDS]`. Prints
//! milliseconds, one line a round.

use std::{error::Error, io::Write, time::Instant};

use bytes::Bytes;
use oci::{Descriptor, ImageConfig, Manifest, Platform, Reference, layer, media_type};
use registry::{
    Client, Config,
    client::Source,
    server::{Auth, router},
};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: publish FILE [ROUNDS]")?;
    let rounds: u32 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let dir = std::env::temp_dir().join(format!("publish-{}", std::process::id()));
    let store = images::Store::open(&dir)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let reference: Reference = format!("{}/program", listener.local_addr()?).parse()?;
    tokio::spawn(async move { axum::serve(listener, router(store, Auth::Open)).await });
    let client = Client::new(Config::default())?;
    for round in 0..rounds {
        // A change in the program, so that nothing is there yet.
        let mut program = std::fs::read(&file)?;
        program.extend_from_slice(&round.to_le_bytes());
        let start = Instant::now();
        let fill = |w: &mut layer::Writer<Vec<u8>>| w.file("app", 0o755, program.len() as u64, &program[..]);
        let (bytes, layer) = layer::write(layer::Options::default(), fill)?;
        let packed = start.elapsed();
        let mut config = ImageConfig::new(&Platform::host());
        config.rootfs.diff_ids.push(layer.diff_id);
        let config = Bytes::from(config.to_vec());
        let described = Descriptor::of(media_type::OCI_CONFIG, &config);
        let manifest = Manifest::new(described.clone(), vec![layer.descriptor.clone()]).to_vec();
        tokio::try_join!(
            client.put_blob(&reference, &layer.descriptor, Source::Bytes(bytes.into())),
            client.put_blob(&reference, &described, Source::Bytes(config)),
        )?;
        client.put_manifest(&reference, media_type::OCI_MANIFEST, manifest.into()).await?;
        let (packed, whole) = (packed.as_secs_f64() * 1e3, start.elapsed().as_secs_f64() * 1e3);
        writeln!(std::io::stdout(), "{whole:.1} ms, of which {packed:.1} packing")?;
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
