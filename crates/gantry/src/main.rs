//! gantry.
fn main() {}
