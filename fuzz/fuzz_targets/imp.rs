//! The weights of an Imp in files of llama.cpp.
#![no_main]

imp_flow_fuzz::target!("imp");
