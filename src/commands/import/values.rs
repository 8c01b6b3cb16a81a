//! Values of scripts, as TOML and for this program. Independent of flags.

/// What stands for a path that the script does not name.
pub(super) fn missing(flag: &str) -> String {
    format!("SET-THIS-{flag}")
}

/// Whether a text names a repository of Hugging Face: `owner/name`.
pub(super) fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}

/// The number of GPUs that a launcher names, as deepspeed and torchrun do.
pub(super) fn devices_of(launcher: &[String]) -> Option<usize> {
    let after = |flag: &str| {
        let at = launcher.iter().position(|word| word == flag || word.starts_with(&format!("{flag}=")))?;
        launcher[at].split_once('=').map(|(_, value)| value.to_string()).or_else(|| launcher.get(at + 1).cloned())
    };
    // `localhost:0,1@other:0`, each host with its GPUs.
    if let Some(hosts) = after("--include") {
        let cards = |host: &str| host.split_once(':').map_or(0, |(_, cards)| cards.split(',').count());
        return Some(hosts.split('@').map(cards).sum()).filter(|count| *count > 0);
    }
    let number = |flags: &[&str]| flags.iter().find_map(|flag| after(flag)?.parse::<usize>().ok());
    let each = number(&["--num_gpus", "--nproc_per_node", "--nproc-per-node", "--num_processes"])?;
    Some(each.saturating_mul(number(&["--nnodes", "--num_nodes"]).unwrap_or(1)))
}

/// A number or a truth value as TOML writes it: `0.` is `0.0`.
pub(super) fn toml_value(text: &str) -> Option<String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => return Some("true".into()),
        "false" => return Some("false".into()),
        _ => {}
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.to_string());
    }
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite())?;
    // The shortest digits that give the same number, always with a point or an exponent.
    Some(format!("{number:?}"))
}

/// A string of TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

/// A text of the script in a comment: it can't end the line.
pub(super) fn in_comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
