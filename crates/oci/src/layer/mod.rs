//! Layers: tar streams, plain or gzip, that mean the same bytes wherever they are made (image spec, layer.md).
//!
//! [`Writer`] makes them: what it is given alone decides the digest, never the machine, its cores or its clock.
//! [`Reader`] reads anybody's, trusts nothing, and bounds everything; [`Policy`] tells which entries may be unpacked.

mod gzip;
mod header;
mod policy;
mod reader;
mod writer;

pub use gzip::{BLOCK_LEN, Encoder};
pub use policy::{Action, Policy, Refused};
pub use reader::{Entry, Error, Kind, Limits, Reader, decompress, diff_id, expect, verify};
pub use writer::{Layer, Options, Writer, write};
