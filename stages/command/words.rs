//! The words of a command that stand for something else. All other text is left as it is, braces included.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

/// What they stand for.
pub(super) struct Words {
    pub(super) out: PathBuf,
    pub(super) checkpoint: PathBuf,
    pub(super) inputs: Vec<PathBuf>,
    /// Files as the configuration names them. A word that is one of them is replaced as a whole.
    pub(super) files: BTreeMap<String, PathBuf>,
    pub(super) seed: u64,
    pub(super) threads: usize,
}

impl Words {
    /// The word with everything replaced.
    pub(super) fn replace(&self, word: &str) -> OsString {
        if let Some(file) = self.files.get(word) {
            return file.into();
        }
        let mut replaced = OsString::new();
        let mut rest = word;
        while let Some((before, name, after)) = next(rest) {
            replaced.push(before);
            replaced.push(self.value(name));
            rest = after;
        }
        replaced.push(rest);
        replaced
    }

    fn value(&self, name: &str) -> OsString {
        let path = |path: Option<&PathBuf>| path.map(|path| path.as_os_str()).unwrap_or_default().to_os_string();
        match name {
            "out" => self.out.clone().into(),
            "checkpoint" => self.checkpoint.clone().into(),
            "input" => path(self.inputs.first()),
            "seed" => self.seed.to_string().into(),
            "threads" => self.threads.to_string().into(),
            name => path(number(name).and_then(|number| self.inputs.get(number))),
        }
    }
}

/// Checks that the inputs that are named are there.
///
/// # Errors
/// In words that follow the name of the key.
pub(super) fn check(command: &[String], inputs: usize) -> Result<(), String> {
    for word in command {
        let mut rest = word.as_str();
        while let Some((_, name, after)) = next(rest) {
            match (name, number(name)) {
                (_, _) if inputs == 0 && (name == "input" || number(name).is_some()) => {
                    return Err(format!("has `{{{name}}}`, and the stage has no inputs: name some with `inputs`"));
                }
                ("input", _) if inputs != 1 => {
                    return Err(format!(
                        "has `{{input}}`, which is for one input, and the stage has {inputs}: write `{{inputs[0]}}`"
                    ));
                }
                (_, Some(number)) if number >= inputs => {
                    return Err(format!("has `{{{name}}}`, and the number of inputs is {inputs}, counted from 0"));
                }
                _ => {}
            }
            rest = after;
        }
    }
    Ok(())
}

/// The text before the next `{name}` that is known, the name, and the text after it.
fn next(text: &str) -> Option<(&str, &str, &str)> {
    let is_known =
        |name: &str| ["out", "checkpoint", "input", "seed", "threads"].contains(&name) || number(name).is_some();
    text.match_indices('{').find_map(|(start, _)| {
        let (name, after) = text[start + 1..].split_once('}')?;
        is_known(name).then_some((&text[..start], name, after))
    })
}

/// The number in `inputs[NUMBER]`.
fn number(name: &str) -> Option<usize> {
    name.strip_prefix("inputs[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_replaced_and_braces_stay() {
        let words = Words {
            out: "/o".into(),
            checkpoint: "/c".into(),
            inputs: vec!["/a".into(), "/b".into()],
            files: BTreeMap::from([("x.py".to_string(), "/p/x.py".into())]),
            seed: 7,
            threads: 2,
        };
        for (word, replaced) in [
            ("{out}/x-{seed}-{threads}", "/o/x-7-2"),
            ("{inputs[1]}:{input}", "/b:/a"),
            ("x.py", "/p/x.py"),
            ("./x.py", "./x.py"),
            ("{print $1} {} {other} {out", "{print $1} {} {other} {out"),
            ("{{out}}", "{/o}"),
            ("{a{checkpoint}", "{a/c"),
        ] {
            assert_eq!(words.replace(word), OsString::from(replaced), "{word}");
        }
        let check = |word: &str, inputs| check(&[word.to_string()], inputs).is_ok();
        assert!(check("{input}", 1) && !check("{input}", 0) && !check("{input}", 2));
        assert!(check("{inputs[1]}", 2) && !check("{inputs[2]}", 2) && check("{inputs[x]}", 0));
    }
}
