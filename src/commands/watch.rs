//! `imp-flow watch`: the report of a run while it goes on, on a page that follows it.

use std::{
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use super::{
    page::{data_of, run_of},
    session::{existing_store, find_run, settings},
};
use crate::{
    cli::{Common, WatchArgs},
    failure::Failure,
    report,
    serve::{self, Live},
    store::{RunRecord, RunState, look_up},
};

/// How often the state of the run is read.
const PAUSE: Duration = Duration::from_secs(2);
/// Reading may take this part of the time: records, curves and logs can be long.
const SHARE: u32 = 10;
/// Without a request for so long, nobody is watching, and only the state of the run is read.
const ASKED: Duration = Duration::from_secs(15);
/// Hexadecimal digits of the token in the address.
const TOKEN: usize = 32;

/// Serves the page of a run until Ctrl-C.
pub(crate) fn watch(args: &WatchArgs, common: &Common) -> Result<ExitCode, Failure> {
    let target = args.run.clone();
    let run = first_run(target.as_deref(), common)?;
    let (title, data) = data_of(&run, common)?;
    let token = format!("{:0width$x}", rand::random::<u128>(), width = TOKEN);
    let live = Arc::new(Live::new(&token, title, data));
    let failed = |what: String| move |source| Failure::Io { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("can't start the server".into()))?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", args.port))
            .await
            .map_err(failed(format!("can't listen on port {}", args.port)))?;
        let address = listener.local_addr().map_err(failed("can't listen".into()))?;
        report::watching(&format!("http://{address}/{token}/"), &run, common.style());
        let (follower, common) = (live.clone(), common.clone());
        // Ends with the process.
        thread::spawn(move || follow(target.as_deref(), run, &follower, &common));
        serve::watch(listener, live).await.map_err(failed("can't go on serving".into()))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The run to show. Waits for the first run of a pipeline file.
fn first_run(target: Option<&str>, common: &Common) -> Result<RunRecord, Failure> {
    let is_file = target.is_some_and(|target| Path::new(target).is_file());
    let mut has_said = false;
    loop {
        // Before the first run there is no cache.
        let is_new = is_file && look_up(&settings(common)?.cache.join("VERSION")).is_err();
        if !is_new {
            match current(target, common) {
                Err(Failure::Usage { .. }) if is_file => {}
                found => return found,
            }
        }
        if !has_said {
            report::note("waiting for a run of this pipeline (Ctrl-C ends it)", common.style());
            has_said = true;
        }
        thread::sleep(PAUSE / 4);
    }
}

/// The run that `target` means now: a run, or the last one of a pipeline, or the last one of all.
fn current(target: Option<&str>, common: &Common) -> Result<RunRecord, Failure> {
    let (_, store) = existing_store(common)?;
    target.map_or_else(|| find_run(&store, None), |target| run_of(&store, target))
}

/// Shows what has changed, for ever.
fn follow(target: Option<&str>, mut shown: RunRecord, live: &Live, common: &Common) {
    let mut took = Duration::ZERO;
    // What is shown may be older than the last change of the run.
    let mut is_final = false;
    loop {
        thread::sleep(PAUSE.max(took * SHARE));
        let start = Instant::now();
        // A cache that can't be read for a moment, as on a network's disk, will be read again.
        let Ok(run) = current(target, common) else { continue };
        let is_other = run.id != shown.id || run.ending != shown.ending;
        if is_other {
            report::watched(&run, common.style());
            is_final = false;
        }
        shown = run;
        if !is_final && (is_other || live.is_watched(ASKED)) {
            // A run that can't be read at the moment stays as it was.
            if let Ok((title, data)) = data_of(&shown, common) {
                live.show(title, data);
                is_final = shown.ending != RunState::Running;
            }
        }
        took = start.elapsed();
    }
}
