//! A file of llama.cpp.
#![no_main]

imp_flow_fuzz::target!("gguf");
