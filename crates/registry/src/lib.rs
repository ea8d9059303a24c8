//! The OCI distribution spec 1.1, both ways: [`server::router`] serves an image store, [`Client`] speaks to any registry.
//!
//! Invariants:
//! - What arrives is hashed on its way to the disk; a digest that does not fit is refused and leaves nothing.
//! - Reading is open, writing needs a token (unless the server was told otherwise).
//! - A credential is sent only to the registry it was given for, or to the token service that this registry names.

pub mod client;
pub mod credentials;
pub mod server;

pub use client::{Client, Config};
pub use credentials::{Credential, Credentials};
