//! A checkpoint of a training stage.
#![no_main]

imp_flow_fuzz::target!("checkpoint");
