//! Submits the runner itself, so that nobody needs to stay logged in while it submits stages and takes in what they make. Independent
//! of what it runs.

use std::{ffi::OsString, path::Path, time::Duration};

use super::{
    call::call,
    refusal::Refusal,
    request::Request,
    shell::{escaped, plain, quoted},
    submission::JobId,
};
use crate::machine::Cluster;

/// How long before the end of its time the runner is queued again; at most half of its time.
const AHEAD: Duration = Duration::from_mins(2);

/// Submits `program` with `arguments` as a job called after `name`, which writes to `log`.
///
/// # Errors
/// Why there is no such job, and what to do.
pub(crate) async fn detach(
    cluster: &Cluster,
    name: &str,
    program: &Path,
    arguments: &[OsString],
    log: &Path,
) -> Result<JobId, (String, String)> {
    let request = Request {
        name: name.into(),
        cpus: None,
        gpus: 0,
        memory: None,
        options: cluster.options.with(&cluster.runner),
        save: AHEAD,
    };
    let signal = format!("B:USR1@{}", request.save_seconds());
    let name = format!("imp-flow-{}", plain(name));
    let mut all = request.arguments(&name, &escaped(log), &signal);
    all.push(format!("--wrap={}", String::from_utf8_lossy(&script(program, arguments))));
    let answer = call("sbatch", &all, &[]).await.map_err(Refusal::Unheard);
    answer.and_then(|answer| answer.job()).map_err(|refusal| match refusal {
        Refusal::Unheard(why) => (
            format!("Slurm has not said whether it took the runner: {why}"),
            format!("if `squeue --me` lists a job {name}, the run goes on there; otherwise run the same command again"),
        ),
        refused => {
            let (message, help) = refused.words("the runner", &request.asked());
            (message, format!("{}; [slurm.runner] holds for the runner alone", help.unwrap_or_default()))
        }
    })
}

/// What the job runs. Before its time is over it is queued again, and then follows the jobs that it has left.
fn script(program: &Path, arguments: &[OsString]) -> Vec<u8> {
    let mut script = quoted(program.as_os_str());
    for argument in arguments {
        script.push(b' ');
        script.extend(quoted(argument));
    }
    script.extend_from_slice(
        b" &\nrunner=$!\ntrap 'scontrol requeue \"$SLURM_JOB_ID\"' USR1\n\
          while :; do wait $runner; status=$?; kill -0 $runner 2> /dev/null || exit $status; done\n",
    );
    script
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    #[test]
    fn the_script_passes_arguments_and_the_exit_code_on() {
        let arguments = ["-c", "printf '%s' \"$1\"; exit 7", "sh", "it's $HOME"].map(OsString::from);
        let script = String::from_utf8(script(Path::new("/bin/sh"), &arguments)).unwrap();
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), b"it's $HOME".as_slice()));
    }
}
