//! Reads a training script of bash as far as it starts a training program: its flags, with variables filled in. Nothing of a script
//! is ever run, so what only running would tell stays as it is written. Unaware of what flags mean.

use std::{collections::BTreeMap, iter::Peekable, str::Chars};

/// The call of a training program.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// The flags of the program in their order.
    pub(super) flags: Vec<Flag>,
    /// Words before the program: the launcher and its flags.
    pub(super) launcher: Vec<String>,
    /// Lines of the script that begin like flags but belong to no command: a comment ended the command before them.
    pub(super) lost: Vec<usize>,
    /// Words of the call that may hold flags, and are not understood, such as `"${args[@]}"`.
    pub(super) unread: Vec<Word>,
    /// Lines of further calls of training programs.
    pub(super) others: Vec<usize>,
    /// Lines after which a text for a program follows that names a training.
    pub(super) texts: Vec<usize>,
}

/// A flag of the program.
#[derive(Debug, PartialEq)]
pub(super) struct Flag {
    /// Without the dashes.
    pub(super) name: String,
    /// `True` for a flag without a value.
    pub(super) value: String,
    /// Line of the script, from 1.
    pub(super) line: usize,
}

/// A word, and the line that it stands on.
pub(super) type Word = (String, usize);

/// The longest value of a variable, in bytes: one made of itself grows without end.
const LONGEST: usize = 1 << 16;

/// The first call of a Python program that trains. `given` are variables that take the place of the script's own.
pub(super) fn read(text: &str, given: &BTreeMap<String, String>) -> Option<Call> {
    let mut variables = given.clone();
    let mut found: Option<Call> = None;
    let (mut lost, mut others) = (Vec::new(), Vec::new());
    let (commands, texts) = commands(text);
    for command in commands {
        let words: Vec<Word> = command.iter().flat_map(|word| filled_in(word, &variables)).collect();
        if found.is_some() {
            others.extend(words.iter().find(|(word, _)| is_training(word)).map(|(_, line)| *line));
            lost.extend(words.first().filter(|(word, _)| word.starts_with("--")).map(|(_, line)| *line));
            continue;
        }
        if let Some(at) = words.iter().position(|(word, _)| is_training(word)) {
            let launcher = words[..at].iter().map(|(word, _)| word.clone()).collect();
            let (flags, unread) = flags(&words[at + 1..]);
            found = Some(Call { flags, launcher, unread, ..Call::default() });
            continue;
        }
        let exported = words.first().is_some_and(|(word, _)| word == "export");
        for (word, _) in words.iter().skip(usize::from(exported)) {
            let Some((name, value)) = word.split_once('=').filter(|(name, _)| is_name(name)) else { break };
            if !given.contains_key(name) && value.len() <= LONGEST {
                variables.insert(name.into(), value.into());
            }
        }
    }
    found.map(|call| Call { lost, others, texts, ..call })
}

/// Whether a word is the path of a program like `llava/train/train_mem.py`.
fn is_training(word: &str) -> bool {
    let file = word.rsplit('/').next().unwrap_or_default();
    file.contains("train") && file.to_ascii_lowercase().ends_with(".py")
}

/// A word with variables filled in. As in the shell, what a bare variable holds is several words.
fn filled_in((word, line): &Word, variables: &BTreeMap<String, String>) -> Vec<Word> {
    let text = expanded(word, variables);
    if word.starts_with('$') && !word.starts_with("$(") && text.contains(char::is_whitespace) {
        return text.split_whitespace().map(|part| (part.to_string(), *line)).collect();
    }
    vec![(text, *line)]
}

/// Whether a word is, or begins, a redirection: `>log`, `2>`, `<in`.
fn is_redirection(word: &str) -> bool {
    word.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(['>', '<'])
}

/// Whether a word is what the shell would make several of: `$@`, `$*`, `${args[@]}`.
fn is_several(word: &str) -> bool {
    ["$@", "$*"].contains(&word) || word.starts_with("${") && (word.ends_with("[@]}") || word.ends_with("[*]}"))
}

/// The flags, up to a redirection, and the words that may hold more.
fn flags(words: &[Word]) -> (Vec<Flag>, Vec<Word>) {
    let (mut flags, mut unread) = (Vec::new(), Vec::new());
    let end = words.iter().position(|(word, _)| is_redirection(word)).unwrap_or(words.len());
    let (words, several): (Vec<&Word>, Vec<&Word>) = words[..end].iter().partition(|(word, _)| !is_several(word));
    unread.extend(several.into_iter().cloned());
    let mut words = words.into_iter().peekable();
    while let Some((word, line)) = words.next() {
        let Some(name) = word.strip_prefix("--") else {
            unread.push((word.clone(), *line));
            continue;
        };
        let (name, value) = if let Some((name, value)) = name.split_once('=') {
            (name, value.to_string())
        } else {
            let mut values = Vec::new();
            while let Some((value, _)) = words.next_if(|(word, _)| !word.starts_with("--")) {
                values.push(value.clone());
            }
            (name, if values.is_empty() { "True".into() } else { values.join(" ") })
        };
        flags.push(Flag { name: name.into(), value, line: *line });
    }
    (flags, unread)
}

/// The simple commands of a script, as words with quotes as written, and the lines before texts that name a training. Constructs of the
/// shell are words like others.
fn commands(text: &str) -> (Vec<Vec<Word>>, Vec<usize>) {
    let (mut commands, mut command, mut word) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut began, mut quote) = (1, 1, None);
    // Where the commands of this line begin.
    let (mut first, mut texts) = (0, Vec::new());
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        let ends_word = quote.is_none() && (c.is_whitespace() || ";&|".contains(c));
        if ends_word && !word.is_empty() {
            command.push((std::mem::take(&mut word), began));
        }
        match (c, quote) {
            // A line that goes on. Files from Windows have another sign before its end.
            ('\\', None | Some('"')) if matches!(letters.peek(), Some('\n' | '\r')) => {
                letters.next_if_eq(&'\r');
                letters.next_if_eq(&'\n');
                line += 1;
                if quote.is_none() && !word.is_empty() {
                    command.push((std::mem::take(&mut word), began));
                }
                continue;
            }
            ('#', None) if word.is_empty() => while letters.next_if(|c| *c != '\n').is_some() {},
            _ if ends_word => {
                if c == '\n' || !c.is_whitespace() {
                    commands.push(std::mem::take(&mut command));
                }
            }
            _ => {
                if word.is_empty() {
                    began = line;
                }
                word.push(c);
                if c == '\\' && quote != Some('\'') {
                    word.extend(letters.next());
                } else if quote == Some(c) {
                    quote = None;
                } else if quote.is_none() && matches!(c, '"' | '\'' | '`') {
                    quote = Some(c);
                } else if quote.is_none() && word.ends_with("$(") {
                    quote = Some(')');
                }
            }
        }
        line += usize::from(c == '\n');
        if c == '\n' && ends_word {
            for end in documents_of(&commands[first..]) {
                let (lines, names_training) = skip_document(&mut letters, &end);
                texts.extend(names_training.then_some(line - 1));
                line += lines;
            }
            first = commands.len();
        }
    }
    if !word.is_empty() {
        command.push((word, began));
    }
    commands.push(command);
    commands.retain(|command| !command.is_empty());
    (commands, texts)
}

/// Programs that run the text that they are given.
const RUN_TEXT: [&str; 9] = ["bash", "sh", "zsh", "dash", "ksh", "sbatch", "srun", "ssh", "salloc"];

/// The end of a text that follows a line: `<<END`.
struct End {
    word: String,
    /// Whether tabs before it count for nothing: `<<-END`.
    indented: bool,
}

/// The ends of the texts that the commands of a line are given and do not run: `cat <<END | sbatch` does.
fn documents_of(line: &[Vec<Word>]) -> Vec<End> {
    let is_run = |(word, _): &Word| RUN_TEXT.contains(&word.rsplit('/').next().unwrap_or_default());
    if line.iter().flatten().any(is_run) {
        return Vec::new();
    }
    line.iter().flat_map(|command| documents(command)).collect()
}

fn documents(command: &[Word]) -> Vec<End> {
    let end = |(at, (word, _)): (usize, &Word)| {
        let (before, after) = word.split_once("<<")?;
        // `<<<` is followed by a word, and in `$((1<<2))` it has another meaning.
        if after.starts_with('<') || !before.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte))
        {
            return None;
        }
        let (after, indented) = after.strip_prefix('-').map_or((after, false), |after| (after, true));
        let word = if after.is_empty() { command.get(at + 1)?.0.as_str() } else { after };
        Some(End { word: word.replace(['\'', '"', '\\'], ""), indented })
    };
    command.iter().enumerate().filter_map(end).collect()
}

/// Skips a text up to its end. How many lines that were, and whether one names a training program.
fn skip_document(letters: &mut Peekable<Chars<'_>>, end: &End) -> (usize, bool) {
    let (mut lines, mut names_training) = (0, false);
    while letters.peek().is_some() {
        let text: String = letters.by_ref().take_while(|c| *c != '\n').collect();
        lines += 1;
        let text = text.trim_end_matches('\r');
        if (if end.indented { text.trim_start_matches('\t') } else { text }) == end.word {
            break;
        }
        names_training |= text.split_whitespace().any(is_training);
    }
    (lines, names_training)
}

/// A word without its quotes and with variables filled in. A variable that is not known stays as it is written.
fn expanded(word: &str, variables: &BTreeMap<String, String>) -> String {
    let (mut text, mut rest, mut quote) = (String::new(), word, None);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (_, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => {
                let next = rest.chars().next();
                text.extend(next);
                rest = &rest[next.map_or(0, char::len_utf8)..];
            }
            ('$', None | Some('"')) => {
                let (shown, length) = variable(rest, variables);
                text.push_str(&shown);
                rest = &rest[length..];
            }
            _ => text.push(c),
        }
    }
    text
}

/// What `$` and `rest` stand for, and how many bytes of `rest` belong to it: `NAME`, `{NAME}` or `{NAME:-default}`.
fn variable(rest: &str, variables: &BTreeMap<String, String>) -> (String, usize) {
    let word = |text: &str| text.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    let (inside, length) = match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((inside, _)) => (inside, inside.len() + 2),
        // `$12` is `$1` and a 2.
        None if rest.starts_with(|c: char| c.is_ascii_digit()) => (&rest[..1], 1),
        None => (&rest[..word(rest)], word(rest)),
    };
    let (name, default) = match inside.split_once(":-").or_else(|| inside.split_once('-')) {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    match variables.get(name).map(String::as_str).or(default) {
        Some(value) if !name.is_empty() => (value.into(), length),
        _ => (format!("${}", &rest[..length]), length),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn call(text: &str) -> Call {
        read(text, &BTreeMap::from([("2".to_string(), "given".to_string())])).unwrap()
    }

    fn pairs(call: &Call) -> Vec<(&str, &str, usize)> {
        call.flags.iter().map(|flag| (flag.name.as_str(), flag.value.as_str(), flag.line)).collect()
    }

    #[test]
    fn flags_have_their_variables_and_lines() {
        let call = call(concat!(
            "#!/bin/bash\n# train.py --no 1\nexport ROOT=\"/my data\" N=3\nname='a $ROOT'\nX=$2\n\n",
            "deepspeed --include localhost:0,1 my/train_mem.py \\\n  --one ${ROOT}/x --two \"$name\" \\\r\n",
            "  --three=${Y:-7} --bare \\\n  --four $1/$X$N '--five' \"it is\" --six $(date) && echo --seven 7\n",
        ));
        assert_eq!(call.launcher, ["deepspeed", "--include", "localhost:0,1"]);
        let expected = [
            ("one", "/my data/x", 8),
            ("two", "a $ROOT", 8),
            ("three", "7", 9),
            ("bare", "True", 9),
            ("four", "$1/given3", 10),
            ("five", "it is", 10),
            ("six", "$(date)", 10),
        ];
        assert_eq!(pairs(&call), expected);
    }

    #[test]
    fn what_the_shell_would_do_to_the_flags_is_done_or_told() {
        let call = call(concat!(
            "MORE='--c 3 --d 4'\nA=aa\n",
            "python train.py --a $(ls x | head -1) --b `ls | wc` $MORE \"${args[@]}\" --e 5 $@ 2>&1 | tee log\n",
            "python train.py --f 6\n",
        ));
        let expected =
            [("a", "$(ls x | head -1)", 3), ("b", "`ls | wc`", 3), ("c", "3", 3), ("d", "4", 3), ("e", "5", 3)];
        assert_eq!(pairs(&call), expected);
        let unread: Vec<&str> = call.unread.iter().map(|(word, _)| word.as_str()).collect();
        assert_eq!((unread.as_slice(), call.others.as_slice()), (["${args[@]}", "$@"].as_slice(), [4].as_slice()));
        let grows = format!("A=aa\n{}python train.py --a $A\n", "A=$A$A\n".repeat(40));
        assert!(read(&grows, &BTreeMap::new()).unwrap().flags[0].value.len() <= LONGEST);
    }

    #[test]
    fn what_a_comment_cut_off_is_found() {
        let call = call("python train.py --a 1 \\\n  # --b 2 \\\n  --c 3 \\\n  --d 4\n");
        assert_eq!(pairs(&call), [("a", "1", 1)]);
        assert_eq!(call.lost, [3]);
    }

    #[test]
    fn a_text_for_a_program_starts_no_training() {
        let call = call(concat!(
            "cat > run.sh <<'EOF' && echo \"<<X\"\npython train.py --a 1\nEOF \nEOF\n",
            "cat <<-\"END\" <<B\n\tx train.py\n\tEND\nb '\nB\n",
            "n=$((1<<2)) m=$(cat <<< word)\n",
            "python train.py --b 2\n",
        ));
        assert_eq!(pairs(&call), [("b", "2", 11)]);
        assert_eq!(call.texts, [1, 5]);
        // One that a shell is given does.
        for line in ["sbatch <<EOF", "cat <<EOF | sbatch", "cat << 'EOF' | ssh host /bin/bash -s"] {
            let script = format!("{line}\n#!/bin/bash\ndeepspeed train.py --c 3\nEOF\n");
            let given = super::read(&script, &BTreeMap::new()).unwrap();
            assert_eq!(pairs(&given), [("c", "3", 3)], "{line}");
        }
        for odd in ["cat <<", "cat <<EOF\nx", "<<\n", "cat <<''\n\n", "cat <<A <<A\nA"] {
            assert!(super::read(odd, &BTreeMap::new()).is_none());
        }
    }

    #[test]
    fn no_text_is_too_odd() {
        for text in ["", "\\", "'", "\"$", "${", "$", "a=$b train.py --", "train.py --x ${a:-", "é train.py --ü 'é"]
        {
            let _ = read(text, &BTreeMap::new());
        }
        assert!(read("python eval.py --x 1", &BTreeMap::new()).is_none());
    }
}
