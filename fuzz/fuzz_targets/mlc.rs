//! The list of MLC's shards, and the model in them.
#![no_main]

imp_flow_fuzz::target!("mlc");
