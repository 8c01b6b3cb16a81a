//! imp-flow.
fn main() {}
