//! An archive: zip, tar, and tar in gzip, zstd and xz.
#![no_main]

imp_flow_fuzz::target!("archive");
