//! What is drawn on a terminal, a narrow one and one without cursor control: the program runs in a pseudo-terminal.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    path::Path,
    process::Stdio,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::support::{SMALL, Space};

const COLUMNS: u16 = 60;

/// Runs the program in a terminal of the type `term`. Returns everything that was written to it.
fn in_terminal(space: &Space, term: &str, args: &[&str]) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = || Stdio::from(OpenOptions::new().read(true).write(true).open(Path::new(&name)).unwrap());
    let mut command = space.command(args);
    command.env("TERM", term).env("LC_ALL", "C").env_remove("COLUMNS");
    let mut child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    // Otherwise the terminal stays open when the program ends.
    drop(command);
    let mut written = Vec::new();
    // Ends with an error when the last one closes the terminal.
    let _ = File::from(master).read_to_end(&mut written);
    child.wait().unwrap();
    String::from_utf8(written).unwrap()
}

/// What was written between control sequences, as the terminal shows it: a line that is full goes on in the next one.
fn drawn(written: &str) -> Vec<Vec<String>> {
    let parts = written.split(['\r', '\n', '\x1b']).map(|part| {
        // `[2K` and the like.
        part.strip_prefix('[')
            .map_or(part, |rest| rest.trim_start_matches(|c: char| !c.is_alphabetic()).get(1..).unwrap_or(""))
    });
    parts
        .map(|part| {
            let letters: Vec<char> = part.chars().collect();
            letters
                .chunks(usize::from(COLUMNS))
                .map(|line| line.iter().collect::<String>().trim_end().to_string())
                .collect()
        })
        .collect()
}

/// The lines on the terminal at any time.
fn lines_of(written: &str) -> Vec<String> {
    drawn(written).concat()
}

/// A chain of three stages that take half a second each.
fn chain(text: &str) -> String {
    let stage = |name: &str, after: &str| {
        format!("[stages.{name}]\nkind = \"synthetic\"\nsteps = 5\nstep_ms = 100\ntext = \"{text}\"\nafter = {after}\n")
    };
    ["name = \"p\"\n".to_string(), stage("a", "[]"), stage("b", "\"a\""), stage("c", "\"b\"")].concat()
}

#[test]
fn the_line_about_the_whole_run_says_what_is_left_as_far_as_it_is_known() {
    let space = Space::new();
    space.write("p.toml", chain("first"));
    let lines = lines_of(&in_terminal(&space, "xterm", &["run", "p.toml"]));
    for done in 0..3 {
        let whole = format!("{done} of 3 stages done");
        assert!(lines.contains(&whole), "{whole}: nothing is known of the time before the first run\n{lines:#?}");
    }
    space.write("p.toml", chain("second"));
    let lines = lines_of(&in_terminal(&space, "xterm", &["run", "p.toml"]));
    assert!(lines.iter().any(|line| line == "1 of 3 stages done, a few seconds left"), "{lines:#?}");
    // A stage that never ran has no time, and is said to have none.
    let more = chain("third") + "[stages.d]\nkind = \"synthetic\"\nafter = \"c\"\n";
    space.write("p.toml", more);
    let lines = lines_of(&in_terminal(&space, "xterm", &["run", "p.toml"]));
    let whole = "1 of 4 stages done, a few seconds left (1 unknown)";
    assert!(lines.iter().any(|line| line == whole), "{lines:#?}");
}

#[test]
fn nothing_that_is_drawn_wraps_and_the_loss_is_seen() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let written = in_terminal(&space, "xterm", &["run", "small.toml", "--until", "finetune"]);
    let drawn = drawn(&written);
    let is_bar = |line: &String| line.starts_with(['|', '/', '-', '\\']) && line.contains('[');
    for part in drawn.iter().filter(|part| part.iter().any(is_bar)) {
        let starts = |line: &String| is_bar(line) || line.contains(" of 7 stages done");
        assert!(part.iter().all(starts), "a bar goes on in a second line: {part:#?}");
    }
    let bars: Vec<String> = drawn.concat().into_iter().filter(is_bar).collect();
    assert!(bars.iter().any(|line| line.contains("finetune") && line.contains("loss")), "{bars:#?}");
    // The locale is that of C.
    assert!(written.is_ascii(), "{written}");
}

#[test]
fn a_dumb_terminal_gets_all_messages_as_lines() {
    let space = Space::new();
    let failing = "[stages.d]\nkind = \"synthetic\"\nafter = \"c\"\nfail = \"there is no such colour\"\n";
    space.write("p.toml", chain("first") + failing);
    let written = in_terminal(&space, "dumb", &["run", "p.toml"]);
    assert!(!written.contains('\x1b'), "{written:?}");
    let lines: Vec<&str> = written.lines().map(str::trim_end).collect();
    assert!(lines.contains(&"error: stage `d`: there is no such colour"), "{written}");
    assert!(lines.iter().any(|line| line.starts_with("a: done in ")), "{written}");
    assert!(!written.contains("stages done"), "it would be drawn over and over: {written}");
}
