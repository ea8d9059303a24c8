//! Just enough of ELF (the System V gABI, chapters 4 and 5): machine, interpreter, needed libraries, run path.

pub const MAGIC: &[u8] = b"\x7fELF";
pub const X86_64: u16 = 62;
pub const AARCH64: u16 = 183;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Limits on what is believed of a file's own counts.
const MAX_SEGMENTS: u64 = 512;
const MAX_DYNAMIC_BYTES: u64 = 1 << 16;
const MAX_STRING_BYTES: u64 = 4096;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Elf {
    pub is_64_bit: bool,
    pub machine: u16,
    pub interpreter: Option<String>,
    pub needed: Vec<String>,
    pub run_path: Option<String>,
}

impl Elf {
    /// Parses through `read(offset, buffer)`, which tells whether it could fill the buffer. Only 64-bit files of the
    /// little-endian kind are read beyond their header: no other runs here.
    pub fn parse(read: impl Fn(u64, &mut [u8]) -> bool) -> Result<Elf, &'static str> {
        let mut header = [0; 64];
        if !read(0, &mut header[..20]) {
            return Err("the ELF header is cut short");
        }
        if &header[..4] != MAGIC {
            return Err("it is no ELF file");
        }
        let big_endian = header[5] == 2;
        let machine = [header[18], header[19]];
        let mut elf = Elf {
            is_64_bit: header[4] == 2,
            machine: if big_endian { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) },
            ..Elf::default()
        };
        if !elf.is_64_bit || big_endian {
            elf.is_64_bit &= !big_endian;
            return Ok(elf);
        }
        if !read(0, &mut header) {
            return Err("the ELF header is cut short");
        }
        let segments = segments(&header, &read)?;
        for segment in &segments {
            match segment.kind {
                PT_INTERP => {
                    elf.interpreter =
                        Some(string(&read, segment.offset, segment.size).ok_or("bad interpreter")?);
                }
                PT_DYNAMIC => elf.read_dynamic(&read, segment, &segments)?,
                _ => {}
            }
        }
        Ok(elf)
    }

    fn read_dynamic(
        &mut self,
        read: &impl Fn(u64, &mut [u8]) -> bool,
        dynamic: &Segment,
        segments: &[Segment],
    ) -> Result<(), &'static str> {
        let mut bytes = vec![0; dynamic.size.min(MAX_DYNAMIC_BYTES) as usize];
        if !read(dynamic.offset, &mut bytes) {
            return Err("the dynamic section is cut short");
        }
        let entries = || {
            bytes
                .chunks_exact(16)
                .map(|entry| (u64_at(entry, 0), u64_at(entry, 8)))
                .take_while(|(tag, _)| *tag != DT_NULL)
        };
        let find = |wanted| entries().find(|(tag, _)| *tag == wanted).map(|(_, value)| value);
        let Some(table) = find(DT_STRTAB) else { return Ok(()) };
        let size = find(DT_STRSZ).unwrap_or(u64::MAX);
        // The table is known by its address in memory.
        let table = segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD)
            .find_map(|segment| {
                let into = table.checked_sub(segment.address).filter(|into| *into < segment.size)?;
                segment.offset.checked_add(into)
            })
            .ok_or("the string table is in no segment")?;
        let text = |at: u64| {
            let rest = size.checked_sub(at)?;
            string(read, table.checked_add(at)?, rest)
        };
        for (tag, value) in entries() {
            match tag {
                DT_NEEDED => self.needed.push(text(value).ok_or("bad name of a library")?),
                DT_RUNPATH => self.run_path = text(value),
                DT_RPATH if self.run_path.is_none() => self.run_path = text(value),
                _ => {}
            }
        }
        Ok(())
    }

    /// The architecture's name, as Go has it.
    pub fn architecture(&self) -> String {
        match (self.machine, self.is_64_bit) {
            (X86_64, true) => "amd64".into(),
            (AARCH64, true) => "arm64".into(),
            (3, _) => "386".into(),
            (40, _) => "arm".into(),
            (243, true) => "riscv64".into(),
            (21, _) => "ppc64le".into(),
            (22, _) => "s390x".into(),
            (258, _) => "loong64".into(),
            (8, _) => "mips".into(),
            (machine, _) => format!("ELF machine {machine}"),
        }
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

fn segments(header: &[u8; 64], read: &impl Fn(u64, &mut [u8]) -> bool) -> Result<Vec<Segment>, &'static str> {
    let table = u64_at(header, 32);
    let entry_size = u64::from(u16::from_le_bytes([header[54], header[55]]));
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    if count == 0 {
        return Ok(Vec::new());
    }
    if entry_size < 56 || count > MAX_SEGMENTS {
        return Err("the program headers make no sense");
    }
    (0..count)
        .map(|index| {
            let mut entry = [0; 56];
            let offset = table.checked_add(index * entry_size).ok_or("the program headers make no sense")?;
            if !read(offset, &mut entry) {
                return Err("the program headers are cut short");
            }
            Ok(Segment {
                kind: u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]),
                offset: u64_at(&entry, 8),
                address: u64_at(&entry, 16),
                size: u64_at(&entry, 32),
            })
        })
        .collect()
}

/// Eight bytes at `at`; callers have checked the length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// A text that ends with NUL or at `limit` bytes; `None` if it is longer than any path.
fn string(read: &impl Fn(u64, &mut [u8]) -> bool, offset: u64, limit: u64) -> Option<String> {
    let limit = limit.min(MAX_STRING_BYTES);
    let mut text = Vec::new();
    let mut at = 0;
    while at < limit {
        let mut chunk = [0; 64];
        let mut length = chunk.len().min((limit - at) as usize);
        // Near the end of the file only shorter reads succeed.
        while !read(offset.checked_add(at)?, &mut chunk[..length]) {
            length /= 2;
            if length == 0 {
                return None;
            }
        }
        match chunk[..length].iter().position(|byte| *byte == 0) {
            Some(end) => {
                text.extend_from_slice(&chunk[..end]);
                return Some(String::from_utf8_lossy(&text).into_owned());
            }
            None => text.extend_from_slice(&chunk[..length]),
        }
        at += length as u64;
    }
    (at < MAX_STRING_BYTES).then(|| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A minimal executable for this machine.
    pub fn executable(needed: &[&str], interpreter: Option<&str>) -> Vec<u8> {
        let machine = if cfg!(target_arch = "x86_64") { X86_64 } else { AARCH64 };
        let mut strings = vec![0];
        let mut dynamic: Vec<(u64, u64)> = Vec::new();
        for name in needed {
            dynamic.push((DT_NEEDED, strings.len() as u64));
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
        let interp_at = strings.len() as u64;
        let interp = interpreter.unwrap_or_default();
        strings.extend_from_slice(interp.as_bytes());
        strings.push(0);
        let strings_at = 64 + 56 * 3;
        dynamic.extend([(DT_STRTAB, 0x1000), (DT_STRSZ, strings.len() as u64), (DT_NULL, 0)]);
        let dynamic_at = strings_at + strings.len() as u64;
        let mut file = MAGIC.to_vec();
        file.extend([2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        file.extend(machine.to_le_bytes());
        file.resize(64, 0);
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54] = 56;
        file[56] = 3;
        let mut segment = |kind: u32, offset: u64, address: u64, size: u64| {
            file.extend(kind.to_le_bytes());
            file.extend([0; 4]);
            for value in [offset, address, 0, size, size, 0] {
                file.extend(value.to_le_bytes());
            }
        };
        segment(PT_LOAD, strings_at, 0x1000, strings.len() as u64);
        segment(if needed.is_empty() { 0 } else { PT_DYNAMIC }, dynamic_at, 0, dynamic.len() as u64 * 16);
        let interp_kind = if interpreter.is_some() { PT_INTERP } else { 0 };
        segment(interp_kind, strings_at + interp_at, 0, interp.len() as u64 + 1);
        file.extend(strings);
        for (tag, value) in dynamic {
            file.extend(tag.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        file
    }

    pub fn parse(bytes: &[u8]) -> Result<Elf, &'static str> {
        Elf::parse(|offset, buffer| {
            let end = offset.checked_add(buffer.len() as u64);
            match end.and_then(|end| bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)) {
                Some(found) => {
                    buffer.copy_from_slice(found);
                    true
                }
                None => false,
            }
        })
    }

    #[test]
    fn a_dynamic_executable_is_read() {
        let elf = parse(&executable(&["libc.so.6", "libm.so.6"], Some("/lib/ld.so"))).unwrap();
        assert_eq!(elf.needed, ["libc.so.6", "libm.so.6"]);
        assert_eq!(elf.interpreter.as_deref(), Some("/lib/ld.so"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn nothing_in_a_file_makes_it_panic(
            flips in proptest::collection::vec((0usize..400, any::<u8>()), 0..12),
            cut in 0usize..500,
        ) {
            let mut bytes = executable(&["libc.so.6"], Some("/lib/ld.so"));
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }

        #[test]
        fn nor_do_arbitrary_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
            for (at, byte) in [0x7f, b'E', b'L', b'F', 2, 1].into_iter().enumerate().take(bytes.len()) {
                bytes[at] = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
