//! The output of `imp-flow show`.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::kinds;

use super::{
    foreign::{indented, one_line},
    print::print,
    status::took,
    style::{DIM, GOOD},
    units, why,
};
use crate::{
    store::{Receipt, TreeFile},
    view,
};

/// Shows a receipt. `links` are the paths of the artifact, log and metrics for users.
pub(crate) fn receipt(
    name: &str,
    receipt: &Receipt,
    inputs: &BTreeMap<&str, &str>,
    files: &[TreeFile],
    links: &[PathBuf],
    json: bool,
) {
    let key = receipt.key();
    if json {
        let files: Vec<_> = files
            .iter()
            .map(|file| serde_json::json!({"path": file.path, "bytes": file.size, "digest": file.digest}))
            .collect();
        let links: Vec<_> = links.iter().map(|link| link.to_string_lossy()).collect();
        return print(
            &serde_json::json!({"stage": name, "key": key, "receipt": receipt, "files": files, "links": links})
                .to_string(),
        );
    }
    let mut lines =
        vec![format!("{GOOD}{name}{GOOD:#}  {}, {DIM}key {}{DIM:#}", one_line(&receipt.manifest.kind), key.short())];
    let mut line = |name: &str, value: String| lines.push(format!("  {DIM}{name:<11}{DIM:#} {value}"));
    let took = took(&receipt.timing);
    line("ran", format!("{}, took {took}, on {}", units::time(receipt.timing.finished), one_line(&receipt.host)));
    if let Some(origin) = &receipt.origin {
        line("pulled", format!("{}, from {}", units::time(origin.at), one_line(&origin.from)));
    }
    if !receipt.reason.is_empty() {
        line("reason", why::reason(&receipt.reason));
    }
    if let Some(bytes) = receipt.peak_memory {
        line("peak memory", units::bytes(bytes));
    }
    if let Some(environment) = &receipt.environment {
        line("computed on", one_line(&environment.to_string()));
    }
    line("seed", receipt.manifest.seed.to_string());
    for (name, fields) in configuration(receipt) {
        for (number, (key, value)) in fields.into_iter().enumerate() {
            line(if number == 0 { name } else { "" }, one_line(&format!("{key} = {value}")));
        }
    }
    for (number, (input, digest)) in receipt.manifest.inputs.iter().enumerate() {
        let from = inputs.get(input.as_str()).copied().unwrap_or_default();
        line(if number == 0 { "inputs" } else { "" }, format!("{input} = {from} {DIM}{}{DIM:#}", digest.short()));
    }
    for (number, (figure, value)) in view::figures(receipt).iter().enumerate() {
        let unit = kinds::figure(&receipt.manifest.kind, figure).map_or("", |figure| figure.unit);
        let value = format!("{} {} {unit}", one_line(figure), units::figure(*value));
        line(if number == 0 { "results" } else { "" }, value.trim_end().into());
    }
    for (number, caution) in receipt.cautions.iter().enumerate() {
        line(if number == 0 { "warnings" } else { "" }, indented(caution, "              "));
    }
    let output = receipt.output;
    line(
        "output",
        format!("{} in {}, {}", units::bytes(output.bytes), units::files(output.files), output.digest.short()),
    );
    for file in files.iter().take(SHOWN) {
        line("", format!("{:>8}  {}  {DIM}{}{DIM:#}", units::bytes(file.size), file.path, file.digest.short()));
    }
    if files.len() > SHOWN {
        line("", format!("... and {} more (--json shows all)", files.len() - SHOWN));
    }
    for (number, link) in links.iter().enumerate() {
        line(if number == 0 { "links" } else { "" }, link.display().to_string());
    }
    print(&lines.join("\n"));
}

/// The keys of a stage that were chosen, and those that have their defaults.
fn configuration(receipt: &Receipt) -> [(&'static str, BTreeMap<String, String>); 2] {
    let all = receipt.manifest.config_fields();
    let (chosen, _) = view::besides_defaults(&receipt.manifest.kind, all.clone());
    let defaults = all.into_iter().filter(|(key, _)| !chosen.contains_key(key)).collect();
    [("config", chosen), ("defaults", defaults)]
}

/// The most files to list.
const SHOWN: usize = 20;
