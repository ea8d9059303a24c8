//! HTTP/1.1 by hand (RFC 9112): heads are parsed strictly, bodies are counted and passed on as they come.
//!
//! **Invariant:** what is forwarded has exactly one reading. A head or chunk that two parsers could read in two ways
//! (both lengths, a bare line feed, a folded line, a space before a colon …) is refused, not repaired.

mod authority;
pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod head;
mod upload;
