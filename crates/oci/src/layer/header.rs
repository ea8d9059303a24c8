//! The 512-byte tar header (POSIX.1-2017, pax, "ustar Interchange Format").

use super::reader::Kind;

pub(super) const BLOCK: usize = 512;
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;

/// What a header says.
pub(super) struct Fields<'a> {
    pub path: &'a [u8],
    pub link: &'a [u8],
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: u64,
}

/// The header, preceded by a PAX extended header for what does not fit into it.
pub(super) fn encode(fields: &Fields<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if fields.gid > octal_max(&GID) {
        record(&mut records, "gid", fields.gid.to_string().as_bytes());
    }
    if fields.link.len() > LINK.len() || !fields.link.is_ascii() {
        record(&mut records, "linkpath", fields.link);
    }
    if fields.mtime > octal_max(&MTIME) {
        record(&mut records, "mtime", fields.mtime.to_string().as_bytes());
    }
    if fields.path.len() > NAME.len() || !fields.path.is_ascii() {
        record(&mut records, "path", fields.path);
    }
    if fields.size > octal_max(&SIZE) {
        record(&mut records, "size", fields.size.to_string().as_bytes());
    }
    if fields.uid > octal_max(&UID) {
        record(&mut records, "uid", fields.uid.to_string().as_bytes());
    }
    let mut out = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let base = fields.path.rsplit(|b| *b == b'/').find(|part| !part.is_empty()).unwrap_or(b"x");
        let name = [b"PaxHeaders.0/", &base[..base.len().min(80)]].concat();
        let pax = Fields {
            path: &name,
            link: b"",
            kind: b'x',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: records.len() as u64,
            mtime: 0,
        };
        out.extend_from_slice(&block(&pax));
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    out.extend_from_slice(&block(fields));
    out
}

fn block(fields: &Fields<'_>) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    text(&mut block[NAME], fields.path);
    octal(&mut block[MODE], fields.mode.into());
    octal(&mut block[UID], fields.uid);
    octal(&mut block[GID], fields.gid);
    octal(&mut block[SIZE], fields.size);
    octal(&mut block[MTIME], fields.mtime);
    block[TYPE] = fields.kind;
    text(&mut block[LINK], fields.link);
    block[MAGIC].copy_from_slice(b"ustar\x0000");
    // Device numbers are zero, as no device is ever written.
    octal(&mut block[329..337], 0);
    octal(&mut block[337..345], 0);
    let sum = checksum(&block);
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn text(field: &mut [u8], value: &[u8]) {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
    for byte in &mut field[..len] {
        if !byte.is_ascii() {
            *byte = b'_';
        }
    }
}

fn octal_max(field: &std::ops::Range<usize>) -> u64 {
    (1 << (3 * (field.len() - 1))) - 1
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let fits = value < 1 << (3 * digits);
    let value = if fits { value } else { 0 };
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn checksum(block: &[u8; BLOCK]) -> u64 {
    let field = |i: usize| CHECKSUM.contains(&i);
    block.iter().enumerate().map(|(i, b)| if field(i) { u64::from(b' ') } else { u64::from(*b) }).sum()
}

/// A header as read: raw fields, before PAX and GNU extensions override them.
pub(super) struct Raw {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Option<Kind>,
    /// The type byte.
    pub flag: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: i64,
}

/// Reads a header; the error says which field is wrong.
pub(super) fn decode(block: &[u8; BLOCK]) -> Result<Raw, &'static str> {
    if number(&block[CHECKSUM]) != Some(checksum(block) as i64) {
        return Err("checksum");
    }
    let positive = |range: std::ops::Range<usize>, name| {
        number(&block[range]).and_then(|n| u64::try_from(n).ok()).ok_or(name)
    };
    let mut path = until_nul(&block[NAME]).to_vec();
    // GNU's own format puts other fields where ustar has the prefix.
    if block[MAGIC].starts_with(b"ustar\0") && block[PREFIX.start] != 0 {
        let prefix = until_nul(&block[PREFIX]);
        path = [prefix, b"/", path.as_slice()].concat();
    }
    let flag = block[TYPE];
    let kind = match flag {
        b'0' | 0 | b'7' => Some(Kind::File),
        b'1' => Some(Kind::HardLink),
        b'2' => Some(Kind::SymLink),
        b'3' | b'4' => Some(Kind::Device),
        b'5' => Some(Kind::Directory),
        b'6' => Some(Kind::Fifo),
        _ => None,
    };
    Ok(Raw {
        path,
        link: until_nul(&block[LINK]).to_vec(),
        kind,
        flag,
        mode: positive(MODE, "mode")? as u32 & 0o7777,
        uid: positive(UID, "uid")?,
        gid: positive(GID, "gid")?,
        size: positive(SIZE, "size")?,
        mtime: number(&block[MTIME]).ok_or("mtime")?,
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or(field)
}

/// Octal text, or GNU's base 256 when the first bit is set.
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i128 = if negative { i128::from(first) - 256 } else { i128::from(first) };
        for byte in &field[1..] {
            value = value * 256 + i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}
