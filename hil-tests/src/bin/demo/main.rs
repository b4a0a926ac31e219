//! `scripts/demo`.

fn main() {}
