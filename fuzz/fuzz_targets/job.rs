//! What a job on a cluster writes of itself, and what Slurm says of it.
#![no_main]

imp_flow_fuzz::target!("job");
