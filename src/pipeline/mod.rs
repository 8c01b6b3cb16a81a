//! What the user wrote: from the text of a pipeline file to checked stage declarations.
//! Knows the kinds of stage by their contract; unaware of keys, the store and execution.

mod check;
mod de;
mod diagnostic;
mod load;
mod value;
mod vars;

pub(crate) use check::{Pipeline, StageDecl};
pub(crate) use diagnostic::{Diagnostic, Diagnostics, Sources};
pub(crate) use load::load;
