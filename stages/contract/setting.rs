//! What a kind of stage needs to know of the machine. Independent of where it is set.

/// A setting of the machine: a key of `imp-flow.toml`, which reaches the stage's process as an environment variable. The
/// user's own environment takes precedence. It can't change a result, and so is not part of a stage's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// The key in `imp-flow.toml`. Its value is a string.
    pub key: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// What it sets.
    pub about: &'static str,
}

impl Setting {
    /// The value in this process, if there is one.
    pub fn value(&self) -> Option<String> {
        std::env::var(self.variable).ok().filter(|value| !value.is_empty())
    }
}
