//! A hub's answer about a repository.
#![no_main]

imp_flow_fuzz::target!("hub");
