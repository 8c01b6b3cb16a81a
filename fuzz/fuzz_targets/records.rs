//! An annotation file of LLaVA's.
#![no_main]

imp_flow_fuzz::target!("records");
