//! The cases of `tests/desync`: bytes as text that can be read and compared.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// What has to become of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::accept) enum Expected {
    Refused,
    /// A response that ends.
    Passed,
    /// So many requests, seen by a backend and answered.
    Requests(usize),
    Any,
}

/// A piece of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::accept) enum Piece {
    Bytes(Vec<u8>),
    /// A segment ends.
    Pause,
    /// The connection ends.
    Close,
}

#[derive(Clone, Debug)]
pub(in crate::accept) struct Case {
    pub(in crate::accept) name: String,
    pub(in crate::accept) expected: Expected,
    /// Of the request whose answer this is.
    pub(in crate::accept) method: String,
    text: String,
}

/// Reads a file of cases.
pub(in crate::accept) fn read(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut cases: Vec<Case> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(head) = line.strip_prefix("--- ") {
            cases.push(head_of(head.trim_end()).with_context(|| format!("{}: {line}", path.display()))?);
        } else if let Some(case) = cases.last_mut() {
            case.text.push_str(line);
        } else {
            ensure!(line.starts_with('#'), "{}: {line:?} stands before the first case", path.display());
        }
    }
    Ok(cases)
}

fn head_of(head: &str) -> Result<Case> {
    let (name, rest) = head.split_once(": ").context("a case has a name and what is expected")?;
    let (word, method) = rest.split_once(' ').unwrap_or((rest, "GET"));
    let expected = match word {
        "refused" => Expected::Refused,
        "passed" => Expected::Passed,
        "any" => Expected::Any,
        number => Expected::Requests(number.parse().with_context(|| format!("{number} says nothing"))?),
    };
    Ok(Case { name: name.to_owned(), expected, method: method.to_owned(), text: String::new() })
}

impl Case {
    /// The case's bytes, sent by way of `front`: its targets are `/FRONT/CASE/N`.
    pub(in crate::accept) fn pieces(&self, front: &str) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut bytes = Vec::new();
        let mut rest = self.text.as_str();
        while let Some(next) = rest.chars().next() {
            rest = &rest[next.len_utf8()..];
            match next {
                '\n' => bytes.extend_from_slice(b"\r\n"),
                '\\' => escape(&mut rest, &mut bytes).with_context(|| self.name.clone())?,
                '{' => {
                    let (inner, after) =
                        rest.split_once('}').with_context(|| format!("{}: {{", self.name))?;
                    rest = after;
                    match inner.rsplit_once('*') {
                        Some((text, count)) => {
                            let one = Case { text: text.to_owned(), ..self.clone() }.pieces(front)?;
                            let [Piece::Bytes(one)] = one.as_slice() else { bail!("{}: {inner}", self.name) };
                            bytes.extend_from_slice(&one.repeat(count.parse()?));
                        }
                        None if inner == "pause" || inner == "close" => {
                            pieces.push(Piece::Bytes(std::mem::take(&mut bytes)));
                            pieces.push(if inner == "pause" { Piece::Pause } else { Piece::Close });
                        }
                        None => bytes.extend_from_slice(format!("/{front}/{}/{inner}", self.name).as_bytes()),
                    }
                }
                other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        pieces.push(Piece::Bytes(bytes));
        Ok(pieces)
    }

    /// The case's bytes in one.
    pub(in crate::accept) fn bytes(&self, front: &str) -> Result<Vec<u8>> {
        match self.pieces(front)?.as_slice() {
            [Piece::Bytes(bytes)] => Ok(bytes.clone()),
            _ => bail!("{}: a request has no pauses", self.name),
        }
    }
}

fn escape(rest: &mut &str, bytes: &mut Vec<u8>) -> Result<()> {
    let next = rest.chars().next().context("a backslash at the very end")?;
    *rest = &rest[next.len_utf8()..];
    match next {
        // The line goes on.
        '\n' => {}
        'r' => bytes.push(b'\r'),
        'n' => bytes.push(b'\n'),
        't' => bytes.push(b'\t'),
        'x' => {
            let digits = rest.get(..2).context("two hexadecimal digits")?;
            bytes.push(u8::from_str_radix(digits, 16)?);
            *rest = &rest[2..];
        }
        other => bail!("\\{other} means nothing"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_can_be_read_and_there_are_enough() {
        let folder = crate::tidy::root().unwrap().join("tests/desync");
        let mut count = 0;
        for file in ["requests.txt", "answers.txt"] {
            let cases = read(&folder.join(file)).unwrap();
            let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{file}: a name stands twice");
            cases.iter().for_each(|case| assert!(!case.pieces("front").unwrap().is_empty()));
            count += cases.len();
        }
        assert!(count >= 150, "{count}");
    }

    #[test]
    fn text_becomes_bytes() {
        let mut case = head_of("a: refused HEAD").unwrap();
        assert_eq!((case.expected, case.method.as_str()), (Expected::Refused, "HEAD"));
        case.text = "G {1}\\x00\\\n{ab\\n*2}é\n".to_owned();
        assert_eq!(case.bytes("f").unwrap(), "G /f/a/1\0ab\nab\né\r\n".as_bytes());
        case.text = "a{pause}b{close}\\\n".to_owned();
        let bytes = |text: &str| Piece::Bytes(text.as_bytes().to_vec());
        assert_eq!(
            case.pieces("f").unwrap(),
            [bytes("a"), Piece::Pause, bytes("b"), Piece::Close, bytes("")]
        );
        assert_eq!(head_of("b: 3").unwrap().expected, Expected::Requests(3));
    }
}
