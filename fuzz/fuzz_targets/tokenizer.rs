//! A `tokenizer.json`.
#![no_main]

imp_flow_fuzz::target!("tokenizer");
