//! Prints the OpenAPI document of the agent's local API, generated from its table of routes.
//!
//! `cargo run -p coracle --features schema --example openapi`

fn main() {
    print!("{}", coracle::api::generate_openapi());
}
