//! An image of a data set.
#![no_main]

imp_flow_fuzz::target!("image");
