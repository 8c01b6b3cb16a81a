//! A page of an object store's list.
#![no_main]

imp_flow_fuzz::target!("s3");
