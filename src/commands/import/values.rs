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

/// The GPUs that a training runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub(super) all: usize,
    /// Those of one machine, of the one with the most.
    pub(super) of_a_node: usize,
}

/// The GPUs that a launcher names, as deepspeed, torchrun and accelerate do.
pub(super) fn devices_of(launcher: &[String]) -> Option<Devices> {
    let after = |flag: &str| {
        let at = launcher.iter().position(|word| word == flag || word.starts_with(&format!("{flag}=")))?;
        launcher[at].split_once('=').map(|(_, value)| value.to_string()).or_else(|| launcher.get(at + 1).cloned())
    };
    // `localhost:0,1@other:0`, each host with its GPUs.
    if let Some(hosts) = after("--include") {
        let cards = |host: &str| host.split_once(':').map_or(0, |(_, cards)| cards.split(',').count());
        let (all, most) = (hosts.split('@').map(cards).sum(), hosts.split('@').map(cards).max().unwrap_or_default());
        return Some(Devices { all, of_a_node: most }).filter(|devices| devices.all > 0);
    }
    let number = |flags: &[&str]| flags.iter().find_map(|flag| after(flag)?.parse::<usize>().ok().filter(|n| *n > 0));
    if let Some(each) = number(&["--num_gpus", "--nproc_per_node", "--nproc-per-node"]) {
        let nodes = number(&["--nnodes", "--num_nodes"]).unwrap_or(1);
        return Some(Devices { all: each.saturating_mul(nodes), of_a_node: each });
    }
    // That of accelerate counts the processes of all machines.
    let all = number(&["--num_processes"])?;
    Some(Devices { all, of_a_node: all.div_ceil(number(&["--num_machines"]).unwrap_or(1)) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpus_of_a_launcher_are_those_of_all_machines_and_of_one() {
        for (launcher, all, of_a_node) in [
            ("deepspeed --num_gpus 4", 4, 4),
            ("deepspeed --num_nodes=2 --num_gpus=8 --master_port 1", 16, 8),
            ("deepspeed --include localhost:0,1@other:0", 3, 2),
            ("torchrun --nnodes 2 --nproc_per_node 4", 8, 4),
            ("accelerate launch --num_machines 2 --num_processes 8", 8, 4),
        ] {
            let words: Vec<String> = launcher.split(' ').map(String::from).collect();
            assert_eq!(devices_of(&words), Some(Devices { all, of_a_node }), "{launcher}");
        }
        for launcher in
            ["python", "deepspeed --num_gpus 0", "deepspeed --include other", "torchrun --nproc_per_node gpu"]
        {
            let words: Vec<String> = launcher.split(' ').map(String::from).collect();
            assert_eq!(devices_of(&words), None, "{launcher}");
        }
    }
}
