//! Tests with misbehaving children: shell scripts that stand in for a stage's process.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use super::*;

/// Runs a script that gets the signal `sent` after it has reported a warning. Returns its outcome and its other events.
fn child(script: &str, sent: StopSignal) -> (Outcome, Vec<Event>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stop = watch::Sender::new(StopSignal::None);
    let mut events = Vec::new();
    let run = async {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stderr(Stdio::null());
        connect(&mut command);
        let on_event = |event| {
            if matches!(event, Event::Warning { .. }) {
                stop.send_replace(sent);
            }
            events.push(event);
        };
        let follow = follow(command.spawn().unwrap(), stop.subscribe(), on_event);
        tokio::time::timeout(Duration::from_secs(20), follow).await.unwrap().unwrap()
    };
    (runtime.block_on(run), events)
}

/// Runs a script without sending a signal.
fn alone(script: &str) -> (Outcome, Vec<Event>) {
    child(script, StopSignal::None)
}

fn message(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { message, transient: false, .. } => message,
        other => panic!("{other:?}"),
    }
}

const READY: &str = r#"echo '{"event":"warning","message":"ready"}'; "#;

#[test]
fn events_are_passed_on_and_garbage_is_not() {
    let script = r#"
        echo 'Loading libraries ...'
        echo '{"event":"result","name":"loss","value":1.5}'
        printf '\377\376 not even text\n'
        echo '{"event":"unheard of"}'
        echo '{"event":"peak_memory","bytes":7}'
        echo '{"event":"done"}'"#;
    let (outcome, events) = alone(script);
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(events, [Event::Result { name: "loss".into(), value: 1.5 }, Event::PeakMemory { bytes: 7 }]);
}

#[test]
fn half_a_line_is_not_an_event() {
    let (outcome, events) = alone(r#"printf '{"event":"done"'"#);
    assert_eq!(message(outcome), "its process ended without a result (exit status: 0)");
    assert!(events.is_empty());
    let (outcome, events) = alone(r#"printf '{"event":"result","name":"lo'; kill -9 $$"#);
    assert_eq!(message(outcome), "its process was killed (signal 9)");
    assert!(events.is_empty());
    // Complete, except for the line break.
    assert_eq!(alone(r#"printf '{"event":"done"}'"#).0, Outcome::Done);
}

#[test]
fn the_death_of_a_child_is_described() {
    assert_eq!(message(alone("exit 3").0), "its process ended without a result (exit status: 3)");
    assert_eq!(message(alone("kill -SEGV $$").0), "its process was ended by signal 11");
    let failed = r#"echo '{"event":"failed","message":"no data","help":null,"transient":true}'; exit 1"#;
    assert_eq!(alone(failed).0, Outcome::Failed { message: "no data".into(), help: None, transient: true });
}

#[test]
fn a_child_is_stopped_or_killed() {
    let polite = format!(r#"{READY} read -r line; test "$line" = stop && echo '{{"event":"cancelled"}}'"#);
    assert_eq!(child(&polite, StopSignal::Stop).0, Outcome::Cancelled);
    let done = format!(r#"{READY} read -r line; echo '{{"event":"done"}}'"#);
    assert_eq!(child(&done, StopSignal::Stop).0, Outcome::Done, "it finished before it could stop");
    let deaf = format!("{READY} exec sleep 1000");
    assert_eq!(child(&deaf, StopSignal::Kill).0, Outcome::Cancelled);
}
