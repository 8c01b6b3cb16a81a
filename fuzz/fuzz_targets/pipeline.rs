//! A pipeline file.
#![no_main]

imp_flow_fuzz::target!("pipeline");
