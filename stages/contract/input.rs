//! The inputs of a kind: keys of a pipeline that name other stages.
//! Independent of who fills them.

/// One input of a kind.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// The key, and the name under which [`crate::Job::input`] finds the folder.
    pub name: &'static str,
    /// Whether a pipeline must give it.
    pub required: bool,
    /// Whether a list of stages is allowed.
    pub many: bool,
    /// What the folder holds.
    pub about: &'static str,
}

impl Input {
    /// A required input.
    pub const fn required(name: &'static str, about: &'static str) -> Self {
        Self { name, required: true, many: false, about }
    }

    /// An optional input.
    pub const fn optional(name: &'static str, about: &'static str) -> Self {
        Self { name, required: false, many: false, about }
    }

    /// A list of any length, in the pipeline's order: see [`crate::Job::inputs`].
    pub const fn list(name: &'static str, about: &'static str) -> Self {
        Self { name, required: false, many: true, about }
    }

    /// A list of at least one.
    pub const fn required_list(name: &'static str, about: &'static str) -> Self {
        Self { name, required: true, many: true, about }
    }

    /// The name of the input at `index` of a list. The only input of a list has the name of the list.
    pub fn name_at(name: &str, index: usize) -> String {
        format!("{name}[{index}]")
    }

    /// Whether `given` is `name`, or [`Input::name_at`] of it.
    pub fn is_of(name: &str, given: &str) -> bool {
        given.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
    }
}
