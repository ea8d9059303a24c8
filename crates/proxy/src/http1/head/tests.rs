use super::*;

fn parse(text: &str) -> Result<Request, Bad> {
    let head = text.replace('\n', "\r\n").into_bytes();
    parse_raw(&head)
}

fn parse_raw(head: &[u8]) -> Result<Request, Bad> {
    assert_eq!(end(head, 0), Some(head.len()), "one whole head");
    request(head, &mut Vec::new())
}

#[test]
fn good_requests_are_understood() {
    let get = parse("GET /a?b HTTP/1.1\nHost: x\n\n").unwrap();
    assert!(get.framing == Framing::Empty && get.idempotent && !get.close && !get.rewrite);
    let post = parse("POST / HTTP/1.1\nHost: x\nContent-Length: 12\n\n").unwrap();
    assert!(post.framing == Framing::Length(12) && !post.idempotent);
    let chunked = parse("PUT / HTTP/1.1\nhost:x\nTransfer-Encoding: Chunked\n\n").unwrap();
    assert_eq!(chunked.framing, Framing::Chunked);
    assert!(parse("GET / HTTP/1.1\nHost: x\nConnection: close\n\n").unwrap().close);
    assert!(parse("GET / HTTP/1.0\n\n").unwrap().old);
    let upgrade =
        parse("GET / HTTP/1.1\nHost: x\nConnection: keep-alive, Upgrade\nUpgrade: other\n\n").unwrap();
    assert!(upgrade.upgrade);
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let text = format!("GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n{key}\n\n");
    assert!(parse(&text).unwrap().upgrade);
    assert!(parse("GET / HTTP/1.1\nHost: x\nX-Empty:\nX-Utf: grün\n\n").is_ok());
    assert!(parse("GET http://X.example/p HTTP/1.1\nHost: x.example:80\n\n").is_ok());
    assert!(parse("GET http://x/ HTTP/1.0\n\n").is_ok());
    assert!(parse("OPTIONS * HTTP/1.1\nHost: x\n\n").is_ok());
    assert!(parse("BREW / HTTP/1.1\nHost:\nX_Own: 1\nContent-Length: 0\n\n").is_ok());
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let cases: &[(&str, Bad)] = &[
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 1\nTransfer-Encoding: chunked\n\n", Bad::TwoLengths),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nContent-Length: 0\n\n", Bad::TwoLengths),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 1\nContent-Length: 1\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 1, 1\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: +1\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 0x1\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: -1\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length:\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 1 2\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 99999999999999999999\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: identity\n\n", Bad::TransferCoding),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: gzip, chunked\n\n", Bad::TransferCoding),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: xchunked\n\n", Bad::TransferCoding),
        (
            "POST / HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\nTransfer-Encoding: x\n\n",
            Bad::TransferCoding,
        ),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding: \x0bchunked\n\n", Bad::FieldValue),
        ("POST / HTTP/1.0\nHost: x\nTransfer-Encoding: chunked\n\n", Bad::TransferCoding),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding : chunked\n\n", Bad::FieldName),
        ("POST / HTTP/1.1\nHost: x\nTransfer-Encoding\n : chunked\n\n", Bad::FieldName),
        ("POST / HTTP/1.1\nHost: x\nX: a\n b\n\n", Bad::Folded),
        ("POST / HTTP/1.1\n Host: x\n\n", Bad::Folded),
        ("POST / HTTP/1.1\nHost: x\n: empty\n\n", Bad::FieldName),
        ("POST / HTTP/1.1\nHost: x\nX: a\0b\n\n", Bad::FieldValue),
        ("GET / HTTP/1.1\n\n", Bad::Host),
        ("GET / HTTP/1.1\nHost: x\nHost: y\n\n", Bad::Host),
        ("GET / HTTP/1.1\nHost: x\nConnection: close, content-length\n\n", Bad::Connection),
        ("GET / HTTP/1.1\nHost: x\nConnection: transfer-encoding\n\n", Bad::Connection),
        ("GET / HTTP/1.1\nHost: x\nConnection: host\n\n", Bad::Connection),
        ("GET / HTTP/2.0\nHost: x\n\n", Bad::Version),
        ("GET / HTTP/1.2\nHost: x\n\n", Bad::Version),
        ("GET / http/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET  / HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET /a b HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET / HTTP/1.1 \nHost: x\n\n", Bad::StartLine),
        ("GET /\nHost: x\n\n", Bad::StartLine),
        ("G@T / HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("CONNECT x:1 HTTP/1.1\nHost: x\n\n", Bad::Method),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 003\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 00\n\n", Bad::Length),
        ("POST / HTTP/1.1\nHost: x\nContent_Length: 3\n\n", Bad::Underscore),
        ("GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: websocket\n\n", Bad::Upgrade),
        (
            "GET / HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: WebSocket\nSec-WebSocket-Key: eA==\n\n",
            Bad::Upgrade,
        ),
        ("POST / HTTP/1.1\nHost: x\nTransfer_Encoding: chunked\n\n", Bad::Underscore),
        ("POST / HTTP/1.1\nHost: x\nContent-Length: 3\ntransfer_encoding: chunked\n\n", Bad::Underscore),
        ("GET / HTTP/1.1\nHost: x y\n\n", Bad::Host),
        ("GET / HTTP/1.1\nHost: x/y\n\n", Bad::Host),
        ("GET / HTTP/1.1\nHost: u@x\n\n", Bad::Host),
        ("GET / HTTP/1.1\nHost: x:99999\n\n", Bad::Host),
        ("GET / HTTP/1.0\nHost: x\\\n\n", Bad::Host),
        ("GET http://y/ HTTP/1.1\nHost: x\n\n", Bad::TwoHosts),
        ("GET http://x:81/ HTTP/1.1\nHost: x\n\n", Bad::TwoHosts),
        ("GET http://u@x/ HTTP/1.1\nHost: x\n\n", Bad::Host),
        ("GET http:///p HTTP/1.1\nHost: x\n\n", Bad::Host),
        ("GET ftp://x/ HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET p HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET * HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET /a#b HTTP/1.1\nHost: x\n\n", Bad::StartLine),
        ("GET /\u{fc} HTTP/1.1\nHost: x\n\n", Bad::StartLine),
    ];
    for (text, bad) in cases {
        assert_eq!(parse(text), Err(*bad), "{text:?}");
        assert!(bad.status() >= 400);
    }
}

#[test]
fn bare_line_ends_are_refused() {
    assert_eq!(parse_raw(b"GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n"), Err(Bad::LineEnd));
    assert_eq!(parse_raw(b"GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n"), Err(Bad::LineEnd));
    assert_eq!(parse_raw(b"GET / HTTP/1.1\rHost: x\r\n\r\n"), Err(Bad::LineEnd));
    assert_eq!(hopeless(b"GET / HTTP/1.1\nHost: x\n\n"), Some(Bad::LineEnd));
    assert_eq!(hopeless(b"GET / HTTP/1.1\r\nHost"), None);
    assert_eq!(hopeless(&vec![b'a'; HEAD_BYTES_MAX]), Some(Bad::TooLong));
}

#[test]
fn the_number_of_fields_is_bounded() {
    let text = format!("GET / HTTP/1.1\nHost: x\n{}\n", "X: y\n".repeat(FIELDS_MAX));
    assert_eq!(parse(&text), Err(Bad::TooManyFields));
}

fn forwarded(text: &str) -> String {
    let head = text.replace('\n', "\r\n").into_bytes();
    let mut fields = Vec::new();
    let request = request(&head, &mut fields).unwrap();
    let mut out = Vec::new();
    forward_request(&head, &request, &fields, Client { address: "192.0.2.1", trusted: false }, &mut out);
    String::from_utf8(out).unwrap().replace("\r\n", "\n")
}

#[test]
fn the_backend_gets_the_client_s_address_and_nothing_of_this_hop() {
    assert_eq!(
        forwarded("GET / HTTP/1.1\nHost: x\n\n"),
        "GET / HTTP/1.1\nHost: x\nX-Forwarded-For: 192.0.2.1\nX-Forwarded-Proto: http\n\n"
    );
    assert_eq!(
        forwarded(
            "GET / HTTP/1.1\nHost: x\nConnection: X-Secret, keep-alive\nX-Secret: 1\nTE: trailers\n\
             Keep-Alive: timeout=5\nUpgrade: h2c\nHTTP2-Settings: x\nX-Forwarded-For: 198.51.100.1\nA:  b \n\n"
        ),
        "GET / HTTP/1.1\nHost: x\nA: b\nX-Forwarded-For: 198.51.100.1, 192.0.2.1\nX-Forwarded-Proto: http\n\n"
    );
    assert_eq!(
        forwarded("GET / HTTP/1.1\nHost: x\nUpgrade: other\nConnection: Upgrade\n\n"),
        "GET / HTTP/1.1\nHost: x\nUpgrade: other\nConnection: Upgrade\nX-Forwarded-For: 192.0.2.1\n\
         X-Forwarded-Proto: http\n\n"
    );
}

fn answered(text: &str, close: bool) -> Result<(Response, String), Bad> {
    let head = text.replace('\n', "\r\n").into_bytes();
    let mut fields = Vec::new();
    let response = response(&head, false, &mut fields)?;
    let mut out = Vec::new();
    forward_response(&head, &response, &fields, close, &mut out);
    Ok((response, String::from_utf8(out).unwrap().replace("\r\n", "\n")))
}

#[test]
fn responses_are_framed_and_forwarded() {
    let (response, text) = answered("HTTP/1.1 200 OK\nContent-Length: 5\n\n", false).unwrap();
    assert_eq!((response.status, response.framing, response.close), (200, Framing::Length(5), false));
    assert_eq!(text, "HTTP/1.1 200 OK\nContent-Length: 5\n\n");
    let (response, text) = answered("HTTP/1.1 200\nConnection: close\nA: b\n\n", true).unwrap();
    assert!(response.close && response.framing == Framing::UntilClose);
    assert_eq!(text, "HTTP/1.1 200\nA: b\nConnection: close\n\n");
    let (_, text) =
        answered("HTTP/1.1 101 Switching\nUpgrade: other\nConnection: Upgrade\n\n", false).unwrap();
    assert_eq!(text, "HTTP/1.1 101 Switching\nUpgrade: other\nConnection: Upgrade\n\n");
    assert_eq!(answered("HTTP/1.1 304 Not\nContent-Length: 5\n\n", false).unwrap().0.framing, Framing::Empty);
    assert!(answered("HTTP/1.0 200 OK\nContent-Length: 5\n\n", false).unwrap().0.close);
    let two = answered("HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n", false);
    assert_eq!(two.unwrap_err(), Bad::TwoLengths);
    assert_eq!(answered("HTTP/1.1 20 OK\n\n", false).unwrap_err(), Bad::StartLine);
}

#[test]
fn what_is_no_request_is_known_before_its_line_ends() {
    for (bytes, hopeless) in [
        (&b""[..], false),
        (b"GE", false),
        (b"GET /", false),
        (b"BREW /x", false),
        (b"\r", false),
        (b"\x16\x03\x01", true),
        (b"*1", false),
        (b"G/T", true),
        (b"GET\t/", true),
        (b" GET", true),
        (&[b'A'; 64], true),
    ] {
        let found = hopeless_request(bytes);
        assert_eq!(found, hopeless.then_some(Bad::StartLine), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn an_answer_without_body_does_not_say_how_long_it_is() {
    for status in ["204 No Content", "100 Continue"] {
        for field in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let (response, text) = answered(&format!("HTTP/1.1 {status}\n{field}\nA: b\n\n"), false).unwrap();
            assert_eq!(response.framing, Framing::Empty);
            assert_eq!(text, format!("HTTP/1.1 {status}\nA: b\n\n"));
        }
    }
}
