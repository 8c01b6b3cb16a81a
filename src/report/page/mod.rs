//! The report of a run as one HTML file that needs nothing else: no network, no other files. The page's scripts show the JSON in
//! it, which other programs can read, too. Independent of where the data comes from.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");
const STYLES: [&str; 3] = [include_str!("vendor/uPlot.min.css"), include_str!("base.css"), include_str!("parts.css")];
/// In the order in which they run: each uses what stands before it.
const SCRIPTS: [&str; 11] = [
    include_str!("vendor/uPlot.iife.min.js"),
    include_str!("base.js"),
    include_str!("table.js"),
    include_str!("graph.js"),
    include_str!("stage.js"),
    include_str!("timeline.js"),
    include_str!("curves.js"),
    include_str!("sweep.js"),
    include_str!("answers.js"),
    include_str!("overview.js"),
    include_str!("main.js"),
];

/// What a page that follows its run has besides: it asks where it came from for newer data.
const LIVE_SCRIPTS: [&str; 2] = [include_str!("keep.js"), include_str!("live.js")];

/// The page as JSON on one line, as `--json` prints it.
pub(crate) fn page_json(page: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(page)
}

/// The page as HTML.
pub(crate) fn page_html(title: &str, page: &impl Serialize) -> serde_json::Result<String> {
    Ok(html(title, &page_json(page)?, SCRIPTS.join("\n"), "'none'"))
}

/// The page as HTML that follows its run. `json` is the data of this moment; the address `data` beside the page has later data.
pub(crate) fn live_html(title: &str, json: &str) -> String {
    html(title, json, [SCRIPTS.as_slice(), LIVE_SCRIPTS.as_slice()].concat().join("\n"), "'self'")
}

/// `connect` says with whom the scripts may speak.
fn html(title: &str, json: &str, script: String, connect: &str) -> String {
    let style = STYLES.concat();
    // Nothing else can run or be loaded, whatever the data says.
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src {connect}; img-src data:; \
         base-uri 'none'; form-action 'none'",
        hash(&style),
        hash(&script)
    );
    let parts = [
        ("TITLE", text(title)),
        ("POLICY", policy),
        ("LICENCE", include_str!("vendor/LICENSE").trim().replace("--", "- -")),
        ("STYLE", style),
        ("SCRIPT", script),
        ("DATA", in_script(json)),
    ];
    filled(PAGE, &parts)
}

/// A template with `{{NAME}}` replaced once. What is put in is not searched for further names.
fn filled(template: &str, parts: &[(&str, String)]) -> String {
    let mut html = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        html.push_str(before);
        let found = after
            .split_once("}}")
            .and_then(|(name, after)| Some((&parts.iter().find(|(part, _)| *part == name)?.1, after)));
        rest = if let Some((part, after)) = found {
            html.push_str(part);
            after
        } else {
            html.push_str("{{");
            after
        };
    }
    html + rest
}

/// The hash of a script or a style for a content security policy.
fn hash(content: &str) -> String {
    STANDARD.encode(Sha256::digest(content.as_bytes()))
}

/// Text between tags.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// JSON inside a script element: nothing in it can end the element or begin a comment, since all characters of markup are escaped.
/// So are those that end a line in JavaScript. Control characters are escaped in any JSON.
fn in_script(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len() + json.len() / 16);
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOSTILE: &str =
        "</script><script>alert(1)</script><!-- \u{0}\u{1b}[2J\u{7f} \u{2028}\u{2029} \\u003c {{STYLE}} ]]> &lt; \"'";

    #[test]
    fn no_text_leaves_its_place() {
        let html = page_html("</title><script>", &serde_json::json!({ "log": HOSTILE, HOSTILE: [HOSTILE] })).unwrap();
        assert_eq!(html.matches("<script").count(), 2, "the data and the program");
        assert_eq!(html.matches("</script").count(), 2);
        assert_eq!(html.matches("<title").count(), 1);
        assert!(html.contains("<title>&lt;/title&gt;&lt;script&gt;"));
        let data = html.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        assert!(!data.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) && !data.contains(|c: char| c < ' '));
        let read: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!((read["log"].as_str(), read[HOSTILE][0].as_str()), (Some(HOSTILE), Some(HOSTILE)));
    }

    #[test]
    fn only_the_programs_own_script_and_style_may_run() {
        let html = page_html("t", &serde_json::json!({})).unwrap();
        let between = |from: &str, to: &str| html.split_once(from).unwrap().1.split_once(to).unwrap().0;
        let (style, script) = (between("<style>", "</style>"), between("<script>", "</script>"));
        let policy = between("Content-Security-Policy\" content=\"", "\"");
        assert!(policy.starts_with("default-src 'none'; "));
        assert!(policy.contains(&hash(style)) && policy.contains(&hash(script)), "{policy}");
        assert!(!policy.contains("unsafe"));
    }

    #[test]
    fn only_a_page_that_follows_its_run_may_ask_and_only_where_it_came_from() {
        let still = page_html("t", &serde_json::json!({})).unwrap();
        let live = live_html("t", "{}");
        assert!(still.contains("connect-src 'none'") && !still.contains("fetch("));
        assert!(live.contains("connect-src 'self'"));
        let asked: Vec<&str> = live.match_indices("fetch(").map(|(at, _)| &live[at..at + 13]).collect();
        assert_eq!(asked, ["fetch(\"data\","]);
    }

    /// Texts become text nodes. What would make markup of them, or ask a server, does not occur.
    #[test]
    fn the_scripts_make_no_markup_and_no_requests() {
        for script in SCRIPTS[1..].iter().chain(&LIVE_SCRIPTS) {
            let script = script.replacen("fetch(\"data\",", "", 1);
            for word in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http", "import"]
            {
                let word_in_svg = script.replace("http://www.w3.org/2000/svg", "");
                assert!(!word_in_svg.contains(word), "{word}");
            }
            assert!(!script.contains("</script"));
            assert!(script.lines().count() <= 400);
        }
        assert!(SCRIPTS[1..].iter().all(|script| !script.contains("fetch(")));
        assert!(STYLES.iter().all(|style| !style.contains("url(") && !style.contains("</style")));
    }
}
