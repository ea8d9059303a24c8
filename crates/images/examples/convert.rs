//! Imports an archive and exports it again: `convert STATE FROM TO [NAME]`. For trying what other tools write and read.

use std::{error::Error, fs::File, path::Path};

use images::{Store, import::Options};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, from, to, name @ ..] = arguments.as_slice() else {
        return Err("usage: convert STATE FROM TO [NAME]".into());
    };
    let store = Store::open(Path::new(state))?;
    let name = name.first().map(|name| name.parse()).transpose()?;
    let images = store.import(File::open(from)?, &Options { name, ..Options::default() })?;
    for image in &images {
        store.tree(&image.descriptor.digest)?;
    }
    let names: Vec<_> = images.into_iter().flat_map(|image| image.names).collect();
    store.export(&names, File::create(to)?)?;
    Ok(())
}
