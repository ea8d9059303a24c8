//! The fuzzer: libFuzzer on the target that the environment names.

#![no_main]

use std::sync::LazyLock;

use fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var(fuzz::TARGET_VARIABLE).unwrap_or_default();
    match fuzz::TARGETS.iter().find(|target| target.name == name) {
        Some(target) => *target,
        None => panic!("{} names no target: {name:?}", fuzz::TARGET_VARIABLE),
    }
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| (TARGET.run)(input));
