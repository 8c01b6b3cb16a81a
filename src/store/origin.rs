//! What a run was started with: the state of its pipeline's repository, and the machine. Plain data; independent of how it is found.

use serde::{Deserialize, Serialize};

/// With what a run was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    /// The git repository in which the pipeline lies, if it lies in one and `git` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<Repository>,
    /// How imp-flow was built: `release` or `debug`.
    pub(crate) build: String,
    /// The processor of the runner's machine, and the instructions for vectors that it has.
    pub(crate) cpu: String,
    pub(crate) instructions: Vec<String>,
    /// Threads that the runner may use.
    pub(crate) threads: usize,
    /// Operating system and processor architecture.
    pub(crate) system: String,
}

/// The state of a git repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Repository {
    /// The commit that is checked out, in hexadecimal digits.
    pub(crate) commit: String,
    /// Its branch, if there is one.
    pub(crate) branch: Option<String>,
    /// Whether files that git knows differ from the commit.
    pub(crate) changed: bool,
}

impl Origin {
    /// Names and values, for people. Values that are not known are left out.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let cpu = std::iter::once(self.cpu.as_str()).chain(self.instructions.last().map(String::as_str));
        let facts = [
            ("commit", self.repository.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("build", self.build.clone()),
            ("CPU", cpu.collect::<Vec<_>>().join(", ")),
            ("threads", self.threads.to_string()),
            ("system", self.system.clone()),
        ];
        facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }
}

impl std::fmt::Display for Repository {
    /// `7f7a373af09c of main, with changes`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.commit.get(..12).unwrap_or(&self.commit))?;
        if let Some(branch) = &self.branch {
            write!(f, " of {branch}")?;
        }
        if self.changed { write!(f, ", with changes") } else { Ok(()) }
    }
}
