//! The list of a model's files of weights.
#![no_main]

imp_flow_fuzz::target!("index");
