//! Images that are not what their size says.

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};
use tar::EntryType;

use super::{Door, Stage};
use crate::accept::store::archive::{self, Entry, Image};

pub(super) const DOORS: &[Door] = &[Door {
    name: "images-gzip-bomb",
    wanted: "a layer of 8 MB that unpacks to 8 GiB, in one file or in many, is refused for its size and leaves nothing",
    short: true,
    attack: gzip_bomb,
}];

/// What the layer's one file claims, and holds, in pieces.
const PIECES: usize = 8 << 10;
const PIECE_BYTES: usize = 1 << 20;

/// Deflates `bytes` so that it can be repeated in one stream: to a byte boundary, with no look back.
fn deflated(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() / 4 + 1024);
    Compress::new(Compression::best(), false).compress_vec(bytes, &mut out, FlushCompress::Full)?;
    ensure!(out.len() < out.capacity(), "the piece is not whole");
    Ok(out)
}

/// The layer, as files of so many pieces. Its checksum is wrong: whoever gets there has read all of it.
fn bomb(pieces_of_a_file: usize) -> Result<Vec<u8>> {
    let mut layer = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let piece = deflated(&vec![0; PIECE_BYTES])?;
    for number in 0..PIECES / pieces_of_a_file {
        let size = Some((pieces_of_a_file * PIECE_BYTES) as u64);
        let head = Entry { size, ..Entry::link(EntryType::Regular, &format!("file-{number}"), "") };
        layer.extend(deflated(&archive::tar(&[head])?[..512])?);
        for _ in 0..pieces_of_a_file {
            layer.write_all(&piece)?;
        }
    }
    // The end of the tar and of the stream: an empty last block of deflate, and no true checksum.
    layer.extend(deflated(&[0; 1024])?);
    layer.extend([3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Ok(layer)
}

fn gzip_bomb(stage: &Stage) -> Result<String> {
    let before = stage.sandbox.ok(["image", "ls"])?;
    let mut seen = Vec::new();
    for pieces_of_a_file in [PIECES, 64] {
        let layer = bomb(pieces_of_a_file)?;
        let stored = layer.len();
        let image = Image::new(layer, &archive::digest(b"whatever it is"));
        let file = stage.sandbox.work("images")?.join("bomb");
        std::fs::write(&file, archive::tar(&image.layout("localhost/bomb:1"))?)?;
        let started = Instant::now();
        let load =
            stage.sandbox.run(["image", "load", "-i", file.to_str().context("the file is no text")?])?;
        let took = started.elapsed();
        let said = String::from_utf8_lossy(&load.stderr).into_owned();
        ensure!(
            !load.status.success() && said.contains("more than"),
            "it was not refused for its size: {}",
            said.trim()
        );
        ensure!(stage.sandbox.ok(["image", "ls"])? == before, "something of it is left");
        let files = PIECES / pieces_of_a_file;
        seen.push(format!("{stored} bytes of {files} files refused after {:.1} s", took.as_secs_f64()));
    }
    Ok(seen.join(", "))
}
