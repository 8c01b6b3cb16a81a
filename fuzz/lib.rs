//! Fuzz targets for all that imp-flow reads from outside. What a target does with bytes is in `stages/fuzzing.rs` and
//! `src/fuzzing.rs`, where `cargo test` replays the seeds; here are the runner's modules, compiled as a library, and a limit on memory.

use std::{
    cell::Cell,
    panic, process,
    sync::Once,
};

// The whole modules are compiled, and a target uses a part of them.
#[allow(dead_code, unused_imports)]
#[path = "../src/executor/mod.rs"]
mod executor;
#[allow(dead_code, unused_imports)]
#[path = "../src/fuzzing.rs"]
mod fuzzing;
#[allow(dead_code, unused_imports)]
#[path = "../src/machine.rs"]
mod machine;
#[allow(dead_code, unused_imports)]
#[path = "../src/pipeline/mod.rs"]
mod pipeline;
#[allow(dead_code, unused_imports)]
#[path = "../src/pool.rs"]
mod pool;
#[allow(dead_code, unused_imports)]
#[path = "../src/store/mod.rs"]
mod store;

mod serve;

mod memory;

/// Lets the target `name` read `bytes`.
pub fn run(name: &str, bytes: &[u8]) {
    let mut targets = imp_stages::fuzzing::TARGETS.iter().chain(&fuzzing::TARGETS);
    let (_, target) = targets.find(|(known, _)| *known == name).expect("a target of this name");
    // libFuzzer's own hook ends the process at every panic, also at those that are caught and reported as errors.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| panic::set_hook(Box::new(|info| LAST_PANIC.set(info.to_string()))));
    if panic::catch_unwind(|| memory::limited(|| target(bytes))).is_err() {
        eprintln!("{}", LAST_PANIC.take());
        process::abort();
    }
}

thread_local! {
    static LAST_PANIC: Cell<String> = Cell::default();
}

/// The fuzz target `name`.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run($name, bytes));
    };
}
