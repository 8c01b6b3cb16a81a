//! The output of `imp-flow export` and `imp-flow push`.

use std::path::Path;

use imp_stages::push::{Outlook, Repository};
use serde_json::json;

use super::{
    foreign::{indented, one_line},
    print::{note, print},
    style::{DIM, GOOD, Style},
    units,
};
use crate::store::Receipt;

/// What a push does.
pub(crate) struct Pushed<'a> {
    pub(crate) stage: &'a str,
    pub(crate) to: &'a Repository,
    pub(crate) outlook: &'a Outlook,
    /// Whether files that are at the hub only are removed.
    pub(crate) delete: bool,
    /// Whether a repository that is made is for its owner only.
    pub(crate) private: bool,
    /// Whether the card at the hub stays, which a person wrote.
    pub(crate) kept_card: bool,
}

/// Says that a result was exported.
pub(crate) fn exported(stage: &str, receipt: &Receipt, to: &Path, style: Style) {
    let output = receipt.output;
    if style.json {
        let (files, bytes) = (output.files, output.bytes);
        let told = json!({"stage": stage, "to": to, "files": files, "bytes": bytes, "digest": output.digest,
            "cautions": receipt.cautions});
        return print(&told.to_string());
    }
    for caution in &receipt.cautions {
        note(&format!("note: {}", indented(caution, "      ")), style);
    }
    if !style.quiet {
        let (files, bytes) = (units::files(output.files), units::bytes(output.bytes));
        print(&format!("{GOOD}{stage}{GOOD:#}: {files} ({bytes}) in {}", one_line(&to.display().to_string())));
    }
}

/// The most files to list.
const SHOWN: usize = 20;

/// Shows what a push would do; `asked` if it was to be done, and there is nothing to do.
pub(crate) fn outlook_of_push(push: &Pushed<'_>, asked: bool, style: Style) {
    let Pushed { stage, to, outlook, .. } = push;
    if style.json {
        return print(&values(push, None).to_string());
    }
    if asked || (outlook.changed.is_empty() && !outlook.creates && (outlook.stale.is_empty() || !push.delete)) {
        print(&format!("{GOOD}{stage}{GOOD:#}: {to} has all of it already"));
        return tell_rest(push, style);
    }
    let made = match (outlook.creates, push.private) {
        (true, true) => " (which would be made, private)",
        (true, false) => " (which would be made, and public: --private makes it private)",
        (false, _) => "",
    };
    let bytes = outlook.changed.iter().map(|file| file.bytes).sum();
    let files = units::files(outlook.changed.len() as u64);
    print(&format!("{GOOD}{stage}{GOOD:#} would be pushed to {to}{made}: {files}, {}", units::bytes(bytes)));
    for file in outlook.changed.iter().take(SHOWN) {
        print(&format!("  {:>8}  {}", units::bytes(file.bytes), file.name));
    }
    if outlook.changed.len() > SHOWN {
        print(&format!("  {:>8}  and {} more (--json shows all)", "", outlook.changed.len() - SHOWN));
    }
    tell_rest(push, style);
    print("What the card would say of the pipeline and its settings: --card.");
    let token = if outlook.has_token { "" } else { "; set HF_TOKEN to a token with write access before" };
    print(&format!("Nothing was pushed. To push it, add --yes{token}."));
}

/// Says that a push is done.
pub(crate) fn pushed(push: &Pushed<'_>, page: &str, style: Style) {
    if style.json {
        return print(&values(push, Some(page)).to_string());
    }
    let files = units::files(push.outlook.changed.len() as u64);
    print(&format!("{GOOD}{}{GOOD:#}: {files} pushed, {page}", push.stage));
    tell_rest(push, style);
}

fn tell_rest(push: &Pushed<'_>, style: Style) {
    let (same, stale) = (push.outlook.same, &push.outlook.stale);
    if same > 0 {
        print(&format!("  {DIM}{} there already{DIM:#}", units::files(same as u64)));
    }
    if push.kept_card {
        note("  its README.md stays: somebody wrote or changed it", style);
    }
    if !stale.is_empty() {
        let names: Vec<String> = stale.iter().take(5).map(|name| one_line(name)).collect();
        let more = if stale.len() > names.len() { ", ..." } else { "" };
        let fate = if push.delete { "removed" } else { "only there, and stay (--delete removes them)" };
        print(&format!("  {}: {fate}: {}{more}", units::files(stale.len() as u64), names.join(", ")));
    }
}

fn values(push: &Pushed<'_>, page: Option<&str>) -> serde_json::Value {
    let outlook = push.outlook;
    let changed: Vec<_> = outlook.changed.iter().map(|file| json!({"path": file.name, "bytes": file.bytes})).collect();
    json!({
        "stage": push.stage, "to": push.to.to_string(), "pushed": page.is_some(), "page": page, "creates": outlook.creates,
        "changed": changed, "same": outlook.same, "only_there": outlook.stale, "removes": push.delete,
        "keeps_card": push.kept_card,
    })
}
