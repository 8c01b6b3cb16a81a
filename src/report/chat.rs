//! The output of `imp-flow chat`: what an answer took, and what went wrong, on standard error.

use imp_stages::{
    StageError,
    conversation::{Ended, Reply},
};
use serde_json::json;

use super::{
    foreign::one_line,
    print::{eprint, note, print},
    style::{BAD, Style, WARN},
    units::count,
};

/// Shows what of a model is not used, although it may matter.
pub(crate) fn cautions(messages: &[String]) {
    for message in messages {
        eprint(&format!("{WARN}warning:{WARN:#} {}", one_line(message)));
    }
}

/// Shows why there is no answer to a question. The conversation goes on.
pub(crate) fn trouble(error: &StageError) {
    let help = error.help().map(|help| format!(" ({help})")).unwrap_or_default();
    eprint(&format!("{BAD}error:{BAD:#} {}{help}", one_line(&error.to_string())));
}

/// Ends an answer whose parts were shown.
pub(crate) fn reply(reply: &Reply, style: Style) {
    let Reply { text, tokens, ended, positions, reused, reading, writing, written } = reply;
    if style.json {
        let value = json!({
            "answer": text,
            "tokens": tokens,
            "ended": match ended {
                Ended::Stop => "stop",
                Ended::MaxTokens => "max_tokens",
                Ended::ContextFull => "context_full",
                Ended::Interrupted => "interrupted",
            },
            "positions": positions,
            "reused": reused,
            "reading_seconds": reading.as_secs_f64(),
            "writing_seconds": writing.as_secs_f64(),
            "written": written,
        });
        return print(&value.to_string());
    }
    print("");
    let why = match ended {
        Ended::Stop => "",
        Ended::MaxTokens => "; cut off: --max-tokens allows more",
        Ended::ContextFull => "; cut off: the model reads no more, /reset begins anew",
        Ended::Interrupted => "; stopped",
    };
    note(&format!("{}{why}", speeds(reply)), style);
}

/// How fast a model read and wrote: the time to its first token belongs to reading, so that token is none of what was written.
pub(super) fn speeds(reply: &Reply) -> String {
    let read = reply.positions - reply.reused;
    let (reading, writing) = (reply.reading.as_secs_f64(), reply.writing.as_secs_f64());
    let rate = |count: usize, seconds: f64| {
        if count > 0 && seconds > 0.0 { format!(" ({:.1}/s)", count as f64 / seconds) } else { String::new() }
    };
    format!(
        "read {read} of {} positions in {reading:.2} s{}, wrote {} in {writing:.2} s more{}",
        reply.positions,
        rate(read, reading),
        count(reply.tokens, "token"),
        rate(reply.written, writing),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn reading_and_writing_are_told_apart() {
        let mut reply = Reply {
            text: "a b".into(),
            tokens: 11,
            ended: Ended::MaxTokens,
            positions: 300,
            reused: 100,
            reading: Duration::from_millis(500),
            writing: Duration::from_secs(4),
            written: 10,
        };
        let said = "read 200 of 300 positions in 0.50 s (400.0/s), wrote 11 tokens in 4.00 s more (2.5/s)";
        assert_eq!(speeds(&reply), said);
        reply.written = 0;
        reply.writing = Duration::ZERO;
        assert!(speeds(&reply).ends_with("wrote 11 tokens in 0.00 s more"));
    }
}
