//! A model's `config.json`.
#![no_main]

imp_flow_fuzz::target!("config");
