//! Relative paths in configurations and archives. Independent of the files that they name.

use std::path::{Component, Path};

/// Whether a relative path stays inside its folder.
pub fn stays_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether a file or folder in a user's folder is not content: what version control, file managers and editors keep there.
pub fn is_clutter(relative: &Path) -> bool {
    const NAMES: [&str; 13] = [
        ".DS_Store",
        ".Spotlight-V100",
        ".Trashes",
        ".git",
        ".hg",
        ".idea",
        ".ipynb_checkpoints",
        ".svn",
        ".vscode",
        "Thumbs.db",
        "__MACOSX",
        "__pycache__",
        "desktop.ini",
    ];
    let is = |name: &str| {
        NAMES.contains(&name)
            || name.starts_with("._")
            || name.starts_with(".#")
            || name.starts_with('.') && [".swp", ".swo", ".swx"].iter().any(|end| name.ends_with(end))
            || name.len() > 1 && name.ends_with('~')
    };
    let names: Vec<&str> = relative.iter().filter_map(|name| name.to_str()).collect();
    // Notes of Hugging Face's downloads, with times in them.
    names.iter().any(|name| is(name)) || names.windows(2).any(|pair| pair == [".cache", "huggingface"])
}

/// Whether a path could be the name of a hub's repository.
pub fn may_be_a_repository(path: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
    };
    let parts: Vec<&str> = path.strip_prefix("datasets/").unwrap_or(path).split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| is_part(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clutter_is_told_from_content() {
        for name in
            [".git/HEAD", "a/.DS_Store", "a/._b.png", "notes.txt~", "a/.b.txt.swp", ".#a", ".cache/huggingface/x"]
        {
            assert!(is_clutter(Path::new(name)), "{name}");
        }
        for name in [".gitattributes", "a.png", "git/HEAD", "~", "a.swp", "_a", ".cache/x", "huggingface/x", "a._b"] {
            assert!(!is_clutter(Path::new(name)), "{name}");
        }
    }
}
