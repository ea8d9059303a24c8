//! Keys: `/<group>/<plural>/…`; the first two segments are the kind, to which a ring belongs.

use crate::write;

/// The part of a key or prefix that names its kind, with both slashes around the plural.
pub(crate) fn kind(key: &str) -> Option<&str> {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    (slashes.next()? == 0).then_some(())?;
    slashes.next()?;
    let end = slashes.next()?;
    Some(&key[..=end])
}

pub(crate) fn check(key: &str) -> Result<(), write::Error> {
    match kind(key) {
        Some(kind) if key.len() > kind.len() => Ok(()),
        _ => Err(write::Error::Key(key.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_the_first_two_segments() {
        assert_eq!(kind("/core/pods/default/a"), Some("/core/pods/"));
        assert_eq!(kind("/core/pods/"), Some("/core/pods/"));
        assert_eq!(kind("/core/pods"), None);
        assert_eq!(kind("core/pods/x"), None);
        assert!(check("/core/pods/").is_err());
        assert!(check("/core/nodes/a").is_ok());
    }
}
