//! A receipt, and the record of a run.
#![no_main]

imp_flow_fuzz::target!("receipt");
