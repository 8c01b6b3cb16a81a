//! Tests of the program as users run it, each in a separate folder. Independent of the program's internals.
#![allow(clippy::unwrap_used, reason = "a test that can't continue should say where")]

mod around;
mod bad_input;
mod benchmarks;
mod cache;
mod cautions;
mod command;
mod cuda;
mod device;
mod faults;
mod gpu;
mod gpus;
mod hub;
mod importing;
mod interrupt;
mod judge;
mod newcomer;
mod page;
mod pipeline;
mod questions;
mod recipes;
mod remote;
mod runner;
mod secrets;
mod serving;
mod share;
mod shared;
mod slurm;
mod support;
mod sweeps;
mod talking;
mod tamper;
mod terminal;
mod watching;
