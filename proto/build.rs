//! Compiles the .proto files with protox, a compiler in Rust: no protoc is needed.

use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 13] = [
    "etcd/kv.proto",
    "etcd/auth.proto",
    "etcd/rpc.proto",
    "etcd/v3lock.proto",
    "etcd/v3election.proto",
    "conclave/v1/session.proto",
    "conclave/v1/lock.proto",
    "conclave/v1/election.proto",
    "conclave/v1/primitives.proto",
    "conclave/v1/registry.proto",
    "conclave/v1/write.proto",
    "conclave/internal/v1/raft.proto",
    "conclave/internal/v1/backup.proto",
];
const DURABLE: &str = "conclave/internal/v1/command.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As of now, not of when this was compiled: checkouts share what is built.
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let files: Vec<&str> = FILES.iter().copied().chain([DURABLE]).collect();
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files.iter().map(|f| root.join(f)), [&root])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Keys and values stay slices of the request's buffer: no copy.
        .bytes(".")
        // Comments of .proto files are not Rust documentation and would break doc tests.
        .disable_comments(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
