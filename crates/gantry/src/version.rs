//! Which release this binary is.

/// `MAJOR.MINOR.PATCH`. `GANTRY_VERSION` in the environment of the build stands in for the package's own, so that an
/// upgrade can be tried with two builds of one source.
pub const VERSION: &str = match option_env!("GANTRY_VERSION") {
    Some(version) if !version.is_empty() => version,
    _ => env!("CARGO_PKG_VERSION"),
};

/// Whether `this` release is newer than `other`. What is no version is older than any.
pub fn is_newer(this: &str, other: &str) -> bool {
    match (numbers(this), numbers(other)) {
        (Some(this), Some(other)) => this > other,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

fn numbers(version: &str) -> Option<Vec<u64>> {
    version.split(['-', '+']).next()?.split('.').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(is_newer("0.10.0", "0.9.3") && is_newer("1.0.0", "0.99.0") && is_newer("0.1.1", "0.1"));
        assert!(!is_newer("0.1.0", "0.1.0") && !is_newer("0.1.0", "0.2.0") && !is_newer("?", "0.1.0"));
        // The first release did not say which it was.
        assert!(is_newer("0.1.0", ""));
    }
}
