//! The list of a tree's files.
#![no_main]

imp_flow_fuzz::target!("tree");
