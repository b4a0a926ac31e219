//! Packs the OpenAPI document, which would be a fiftieth of the program and packs to a tenth.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::DeflateEncoder;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=openapi.json");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("openapi.json.deflate");
    let mut packed = DeflateEncoder::new(File::create(out)?, Compression::best());
    packed.write_all(&fs::read("openapi.json")?)?;
    packed.finish()?;
    Ok(())
}
