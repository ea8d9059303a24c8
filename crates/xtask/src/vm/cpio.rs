//! The archive that a kernel unpacks as its first root file system: cpio in the format `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive that is being written.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, &[]);
    }

    /// A file that anybody may run.
    pub(super) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The archive with its end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        // Thirteen fields: inode, mode, uid, gid, links, mtime, size, device (4), length of the name with its zero, sum.
        let fields =
            [self.entries, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn busybox_unpacks_it() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.program("bin/one", b"odd");
        archive.program("init", &[7; 1000]);
        let into = tempfile::tempdir().unwrap();
        let mut child = Command::new("/bin/busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(into.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&archive.end()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(into.path().join("bin/one")).unwrap(), b"odd");
        assert_eq!(std::fs::read(into.path().join("init")).unwrap(), [7; 1000]);
    }
}
