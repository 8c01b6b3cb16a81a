//! The program as its users meet it: each test is a story in a folder of its own.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod bad_input;
mod benchmarks;
mod cache;
mod faults;
mod hub;
mod interrupt;
mod judge;
mod pipeline;
mod questions;
mod runner;
mod support;
mod sweeps;
