//! Prints the JSON Schema of the desired state, generated from its types.
//!
//! `cargo run -p coracle-protocol --features schema --example desired-schema`

fn main() {
    print!("{}", coracle_protocol::desired::generate_json_schema());
}
