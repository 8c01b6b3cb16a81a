//! The inputs of a kind: keys of a pipeline that name other stages.
//! Independent of who fills them.

/// One input of a kind: the key in the pipeline and what must stand there.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// The key, and the name under which [`crate::Job::input`] finds the folder.
    pub name: &'static str,
    /// Whether a pipeline must give it.
    pub required: bool,
    /// Whether a list of stages may stand there.
    pub many: bool,
    /// What the folder holds.
    pub about: &'static str,
}

impl Input {
    /// One that a pipeline must give.
    pub const fn required(name: &'static str, about: &'static str) -> Self {
        Self { name, required: true, many: false, about }
    }

    /// One that a pipeline may give.
    pub const fn optional(name: &'static str, about: &'static str) -> Self {
        Self { name, required: false, many: false, about }
    }

    /// Any number of them, in the pipeline's order: see [`crate::Job::inputs`].
    pub const fn list(name: &'static str, about: &'static str) -> Self {
        Self { name, required: false, many: true, about }
    }

    /// One or more of them.
    pub const fn required_list(name: &'static str, about: &'static str) -> Self {
        Self { name, required: true, many: true, about }
    }

    /// The name of the one at `index` of a list, where every input has a name of its own. One that stands alone has the
    /// name of the list.
    pub fn name_at(name: &str, index: usize) -> String {
        format!("{name}[{index}]")
    }

    /// Whether `given` is what [`Input::name_at`] makes of `name`, or `name` itself.
    pub fn is_of(name: &str, given: &str) -> bool {
        given.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
    }
}
