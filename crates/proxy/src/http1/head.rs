//! Heads of requests and responses: parsing, framing, and what a proxy changes in them.

use super::authority;
use super::body::Framing;

/// The longest head that is taken, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most fields in a head.
pub(crate) const FIELDS_MAX: usize = 256;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    StartLine,
    Version,
    FieldName,
    FieldValue,
    LineEnd,
    Folded,
    TooManyFields,
    TooLong,
    Host,
    /// The target names another host than `Host` does.
    TwoHosts,
    /// A name that a server which takes `_` for `-` would read as a field that frames the message.
    Underscore,
    Length,
    TransferCoding,
    /// Both `Content-Length` and `Transfer-Encoding`.
    TwoLengths,
    /// `Connection` names a field that routing or framing needs.
    Connection,
    Method,
    /// A WebSocket's handshake without its key.
    Upgrade,
}

impl Bad {
    /// The status that the client gets.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::Version => 505,
            Self::TooManyFields | Self::TooLong => 431,
            Self::Method => 405,
            _ => 400,
        }
    }
}

/// The fields that a proxy has to understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Other,
    Connection,
    ContentLength,
    /// `Forwarded` (RFC 7239) and its forerunners, but for the two below: what a client says in them is dropped.
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    Host,
    /// `Keep-Alive`, `Proxy-Connection` and what else is for one hop only.
    Hop,
    TransferEncoding,
    Underscore,
    Upgrade,
    WebSocketKey,
}

/// Servers that hand fields on as variables (CGI, WSGI) read `_` as `-`: such a name counts as the one it would become.
fn known(name: &[u8]) -> Known {
    let same =
        |(byte, other): (&u8, u8)| byte.eq_ignore_ascii_case(&other) || (*byte == b'_' && other == b'-');
    let is = |text: &str| name.iter().zip(text.bytes()).all(same);
    let exact = |known| if name.contains(&b'_') { Known::Underscore } else { known };
    match name.len() {
        2 if is("te") => Known::Hop,
        4 if is("host") => Known::Host,
        7 if is("upgrade") => Known::Upgrade,
        9 if is("forwarded") || is("x-real-ip") => Known::Forwarded,
        10 if is("connection") => Known::Connection,
        10 if is("keep-alive") => Known::Hop,
        14 if is("content-length") => exact(Known::ContentLength),
        14 if is("http2-settings") => Known::Hop,
        14 if is("x-forwarded-by") => Known::Forwarded,
        15 if is("x-forwarded-for") => match exact(Known::ForwardedFor) {
            Known::Underscore => Known::Forwarded,
            for_clients => for_clients,
        },
        16 if is("proxy-connection") => Known::Hop,
        16 if is("x-forwarded-host") || is("x-forwarded-port") => Known::Forwarded,
        17 if is("sec-websocket-key") => Known::WebSocketKey,
        17 if is("transfer-encoding") => exact(Known::TransferEncoding),
        17 if is("x-forwarded-proto") => match exact(Known::ForwardedProto) {
            Known::Underscore => Known::Forwarded,
            of_clients => of_clients,
        },
        18 if is("x-forwarded-prefix") || is("x-forwarded-server") || is("x-forwarded-scheme") => {
            Known::Forwarded
        }
        _ => Known::Other,
    }
}

/// One field line: where it stands in the head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    start: u32,
    name_end: u32,
    value_start: u32,
    value_end: u32,
    known: Known,
}

impl Field {
    fn name<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.start as usize..self.name_end as usize]
    }

    fn value<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.value_start as usize..self.value_end as usize]
    }
}

/// What the proxy needs to know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) framing: Framing,
    /// HTTP/1.0.
    pub(crate) old: bool,
    /// The client will send nothing more on this connection.
    pub(crate) close: bool,
    pub(crate) is_head: bool,
    /// Sending it twice does what sending it once does.
    pub(crate) idempotent: bool,
    pub(crate) upgrade: bool,
    rewrite: bool,
}

/// What the proxy needs to know of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// The backend will send nothing more on this connection.
    pub(crate) close: bool,
    rewrite: bool,
    /// It has fields about a body that it cannot have.
    bodiless: bool,
}

/// Where the head ends, the empty line included. `from` is what an earlier call has seen.
pub(crate) fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    memchr::memmem::find(&bytes[from..], b"\r\n\r\n").map(|at| from + at + 4)
}

/// An incomplete head that can no longer become a good one.
pub(crate) fn hopeless(bytes: &[u8]) -> Option<Bad> {
    let bare = memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r');
    if bare {
        return Some(Bad::LineEnd);
    }
    (bytes.len() >= HEAD_BYTES_MAX).then_some(Bad::TooLong)
}

/// [`hopeless`], for requests: what does not begin like one is refused before it has a line's end.
pub(crate) fn hopeless_request(bytes: &[u8]) -> Option<Bad> {
    const METHOD_BYTES_MAX: usize = 64;
    let method = bytes.iter().take(METHOD_BYTES_MAX).position(|byte| !TOKEN[usize::from(*byte)]);
    let begins_well = match method {
        Some(length) => length > 0 && bytes[length] == b' ' || bytes.starts_with(b"\r"),
        None => bytes.len() < METHOD_BYTES_MAX,
    };
    if begins_well { hopeless(bytes) } else { Some(Bad::StartLine) }
}

const fn table(allowed: &[u8], letters: bool) -> [bool; 256] {
    let mut table = [false; 256];
    let mut index = 0;
    while index < allowed.len() {
        table[allowed[index] as usize] = true;
        index += 1;
    }
    let mut byte = 0;
    while byte < 128 {
        if letters && (byte as u8).is_ascii_alphanumeric() {
            table[byte] = true;
        }
        byte += 1;
    }
    table
}

/// RFC 9110, 5.6.2.
static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~", true);

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| TOKEN[usize::from(*byte)])
}

fn is_value_byte(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// Splits the field lines that start at `at`; the last is the empty line that ends the head.
fn fields(head: &[u8], mut at: usize, found: &mut Vec<Field>) -> Result<(), Bad> {
    found.clear();
    loop {
        match head.get(at) {
            Some(b'\r') if at + 2 == head.len() => return Ok(()),
            Some(b' ' | b'\t') => return Err(Bad::Folded),
            _ => {}
        }
        let start = at;
        while head.get(at).is_some_and(|byte| TOKEN[usize::from(*byte)]) {
            at += 1;
        }
        if at == start || head.get(at) != Some(&b':') {
            return Err(Bad::FieldName);
        }
        let name_end = at;
        at += 1;
        while matches!(head.get(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        let value_start = at;
        while head.get(at).is_some_and(|byte| is_value_byte(*byte)) {
            at += 1;
        }
        match head.get(at..at + 2) {
            Some(b"\r\n") => {}
            Some([b'\r' | b'\n', _]) => return Err(Bad::LineEnd),
            _ => return Err(Bad::FieldValue),
        }
        let mut value_end = at;
        while value_end > value_start && matches!(head[value_end - 1], b' ' | b'\t') {
            value_end -= 1;
        }
        at += 2;
        if found.len() == FIELDS_MAX {
            return Err(Bad::TooManyFields);
        }
        found.push(Field {
            start: start as u32,
            name_end: name_end as u32,
            value_start: value_start as u32,
            value_end: value_end as u32,
            known: known(&head[start..name_end]),
        });
    }
}

fn start_line(head: &[u8]) -> Result<&[u8], Bad> {
    let end = memchr::memchr(b'\r', head).ok_or(Bad::LineEnd)?;
    if head.get(end + 1) != Some(&b'\n') {
        return Err(Bad::LineEnd);
    }
    Ok(&head[..end])
}

/// What the fields say about framing and the connection.
#[derive(Default)]
struct Summary {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade_asked: bool,
    upgrade: bool,
    hosts: usize,
    host: Option<Field>,
    web_socket: bool,
    web_socket_keys: usize,
    rewrite: bool,
}

/// 16 bytes in base64 (RFC 6455, 4.1).
const WEB_SOCKET_KEY_BYTES: usize = 24;

fn summarize(head: &[u8], fields: &[Field]) -> Result<Summary, Bad> {
    let mut summary = Summary::default();
    for field in fields {
        let value = field.value(head);
        match field.known {
            Known::Other => continue,
            Known::Host => {
                summary.hosts += 1;
                summary.host = Some(*field);
            }
            Known::Underscore => return Err(Bad::Underscore),
            Known::ContentLength => {
                if summary.length.is_some() {
                    return Err(Bad::Length);
                }
                summary.length = Some(length(value).ok_or(Bad::Length)?);
            }
            Known::TransferEncoding => {
                if summary.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Bad::TransferCoding);
                }
                summary.chunked = true;
            }
            Known::Connection => {
                summary.rewrite = true;
                connection(value, &mut summary)?;
            }
            Known::Upgrade => {
                summary.rewrite = true;
                // An upgrade to h2c would carry requests past this parser.
                summary.upgrade = !value.is_empty() && !contains_h2c(value);
                summary.web_socket |= value.eq_ignore_ascii_case(b"websocket");
            }
            Known::WebSocketKey => {
                summary.web_socket_keys += usize::from(value.len() == WEB_SOCKET_KEY_BYTES)
            }
            Known::Hop | Known::Forwarded | Known::ForwardedFor | Known::ForwardedProto => {
                summary.rewrite = true;
            }
        }
    }
    if summary.chunked && summary.length.is_some() {
        return Err(Bad::TwoLengths);
    }
    Ok(summary)
}

fn contains_h2c(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|token| token.trim_ascii().to_ascii_lowercase().starts_with(b"h2"))
}

fn length(value: &[u8]) -> Option<u64> {
    const DIGITS_MAX: usize = 18;
    // A zero in front means octal to some.
    let padded = value.len() > 1 && value[0] == b'0';
    let plain = !value.is_empty() && value.len() <= DIGITS_MAX && value.iter().all(u8::is_ascii_digit);
    (plain && !padded).then(|| value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

fn connection(value: &[u8], summary: &mut Summary) -> Result<(), Bad> {
    for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        if token.is_empty() {
            continue;
        }
        if token.eq_ignore_ascii_case(b"close") {
            summary.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            summary.keep_alive = true;
        } else if token.eq_ignore_ascii_case(b"upgrade") {
            summary.upgrade_asked = true;
        } else if !is_token(token) {
            return Err(Bad::Connection);
        } else {
            match known(token) {
                Known::Other | Known::Hop => {}
                _ => return Err(Bad::Connection),
            }
        }
    }
    Ok(())
}

/// Parses a whole request head.
pub(crate) fn request(head: &[u8], found: &mut Vec<Field>) -> Result<Request, Bad> {
    let line = start_line(head)?;
    let method_end = memchr::memchr(b' ', line).ok_or(Bad::StartLine)?;
    let target_end = memchr::memrchr(b' ', line).ok_or(Bad::StartLine)?;
    let (method, version) = (&line[..method_end], &line[target_end + 1..]);
    let target = line.get(method_end + 1..target_end).ok_or(Bad::StartLine)?;
    // A fragment is the client's own (RFC 9112, 3.2): `#` is one parser's path and another's end.
    let plain = |byte: &u8| (b'!'..0x7f).contains(byte) && *byte != b'#';
    if !is_token(method) || !target.iter().all(plain) {
        return Err(Bad::StartLine);
    }
    let old = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ if version.starts_with(b"HTTP/") => return Err(Bad::Version),
        _ => return Err(Bad::StartLine),
    };
    if method == b"CONNECT" {
        return Err(Bad::Method);
    }
    fields(head, line.len() + 2, found)?;
    let summary = summarize(head, found)?;
    if summary.hosts > 1 || (summary.hosts == 0 && !old) {
        return Err(Bad::Host);
    }
    let host = summary.host.map(|field| field.value(head));
    if host.is_some_and(|host| !authority::is_valid(host)) {
        return Err(Bad::Host);
    }
    if target.first() != Some(&b'/') {
        no_path(method, target, host)?;
    }
    if summary.chunked && old {
        return Err(Bad::TransferCoding);
    }
    let upgrade = summary.upgrade && summary.upgrade_asked && !old;
    // A handshake that a backend may not take for one: what follows would be read in two ways.
    if upgrade && summary.web_socket && summary.web_socket_keys != 1 {
        return Err(Bad::Upgrade);
    }
    let framing = match summary.length {
        _ if summary.chunked => Framing::Chunked,
        Some(length) if length > 0 => Framing::Length(length),
        _ => Framing::Empty,
    };
    Ok(Request {
        framing,
        old,
        close: summary.close || old,
        is_head: method == b"HEAD",
        idempotent: matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE" | b"TRACE"),
        upgrade,
        rewrite: summary.rewrite,
    })
}

/// Checks a target that is no path (RFC 9112, 3.2.2 and 3.2.4): a whole URI of the same host, or `*` for OPTIONS.
fn no_path(method: &[u8], target: &[u8], host: Option<&[u8]>) -> Result<(), Bad> {
    if target == b"*" {
        return if method == b"OPTIONS" { Ok(()) } else { Err(Bad::StartLine) };
    }
    let (named, port) = authority::of_uri(target).ok_or(Bad::StartLine)?;
    if named.is_empty() || !authority::is_valid(named) {
        return Err(Bad::Host);
    }
    match host {
        Some(host) if !authority::same(named, host, port) => Err(Bad::TwoHosts),
        _ => Ok(()),
    }
}

/// Parses a whole response head; `to_head`: the request was HEAD.
pub(crate) fn response(head: &[u8], to_head: bool, found: &mut Vec<Field>) -> Result<Response, Bad> {
    let line = start_line(head)?;
    let old = match line.get(..9) {
        Some(b"HTTP/1.1 ") => false,
        Some(b"HTTP/1.0 ") => true,
        _ => return Err(Bad::Version),
    };
    let status = match line.get(9..) {
        Some([a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..])
            if rest.first().is_none_or(|byte| *byte == b' ')
                && rest.iter().all(|byte| is_value_byte(*byte)) =>
        {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => return Err(Bad::StartLine),
    };
    fields(head, line.len() + 2, found)?;
    let summary = summarize(head, found)?;
    let empty = to_head || status < 200 || status == 204 || status == 304;
    // Neither may say how long its body is (RFC 9110, 8.6; RFC 9112, 6.1): some clients would wait for one.
    let bodiless = (status < 200 || status == 204) && (summary.chunked || summary.length.is_some());
    let framing = match summary.length {
        _ if empty => Framing::Empty,
        _ if summary.chunked && old => return Err(Bad::TransferCoding),
        _ if summary.chunked => Framing::Chunked,
        Some(0) => Framing::Empty,
        Some(length) => Framing::Length(length),
        None => Framing::UntilClose,
    };
    let close = summary.close || (old && !summary.keep_alive) || framing == Framing::UntilClose;
    Ok(Response { status, framing, close, rewrite: summary.rewrite || bodiless, bodiless })
}

/// What the proxy says of the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'c> {
    pub(crate) address: &'c str,
    /// It is a proxy of the user's own: what it says of its client is passed on.
    pub(crate) trusted: bool,
}

/// The scheme that the client used with us.
const PROTO: &[u8] = b"http";

/// Writes the head that the backend gets: without what was for this hop, with the client's address and scheme.
pub(crate) fn forward_request(
    head: &[u8],
    request: &Request,
    fields: &[Field],
    client: Client<'_>,
    out: &mut Vec<u8>,
) {
    if !request.rewrite {
        out.extend_from_slice(&head[..head.len() - 2]);
        out.extend_from_slice(b"X-Forwarded-For: ");
        out.extend_from_slice(client.address.as_bytes());
        out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
        out.extend_from_slice(PROTO);
        out.extend_from_slice(b"\r\n\r\n");
        return;
    }
    let line_end = fields.first().map_or(head.len() - 2, |field| field.start as usize);
    out.extend_from_slice(&head[..line_end]);
    let mut forwarded_for = Vec::new();
    let mut proto = None;
    for field in fields {
        match field.known {
            Known::Connection | Known::Hop => {}
            Known::Upgrade if !request.upgrade => {}
            Known::Forwarded if !client.trusted => {}
            Known::ForwardedFor => {
                forwarded_for.extend_from_slice(field.value(head));
                forwarded_for.extend_from_slice(b", ");
            }
            Known::ForwardedProto => proto = Some(field.value(head)).filter(|_| client.trusted),
            Known::Other if listed(field.name(head), head, fields) => {}
            _ => line(out, field.name(head), field.value(head)),
        }
    }
    if request.upgrade {
        line(out, b"Connection", b"Upgrade");
    }
    forwarded_for.extend_from_slice(client.address.as_bytes());
    line(out, b"X-Forwarded-For", &forwarded_for);
    line(out, b"X-Forwarded-Proto", proto.unwrap_or(PROTO));
    out.extend_from_slice(b"\r\n");
}

/// Writes the head that the client gets. `close`: say that the connection ends with it.
pub(crate) fn forward_response(
    head: &[u8],
    response: &Response,
    fields: &[Field],
    close: bool,
    out: &mut Vec<u8>,
) {
    if !response.rewrite && !close {
        out.extend_from_slice(head);
        return;
    }
    let line_end = fields.first().map_or(head.len() - 2, |field| field.start as usize);
    out.extend_from_slice(&head[..line_end]);
    let switching = response.status == 101;
    for field in fields {
        match field.known {
            Known::Connection | Known::Hop => {}
            Known::Upgrade if !switching && response.status != 426 => {}
            Known::ContentLength | Known::TransferEncoding if response.bodiless => {}
            Known::Other if listed(field.name(head), head, fields) => {}
            _ => line(out, field.name(head), field.value(head)),
        }
    }
    if switching {
        line(out, b"Connection", b"Upgrade");
    } else if close {
        line(out, b"Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether forwarding the response means copying it as it is.
pub(crate) fn unchanged(response: &Response, close: bool) -> bool {
    !response.rewrite && !close
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether `Connection` names the field.
fn listed(name: &[u8], head: &[u8], fields: &[Field]) -> bool {
    fields.iter().filter(|field| field.known == Known::Connection).any(|field| {
        field
            .value(head)
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(name))
    })
}

/// A response of the proxy's own, after which the connection ends.
pub(crate) fn refusal(status: u16, reason: &str) -> Vec<u8> {
    let phrase = match status {
        400 => "Bad Request",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    };
    let body = format!("{status} {phrase}: {reason}\n");
    format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests;
