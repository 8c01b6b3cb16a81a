//! A file of tensors (safetensors).
#![no_main]

imp_flow_fuzz::target!("weights");
