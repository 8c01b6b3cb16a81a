//! What the user wrote: from the text of a pipeline file to checked stage declarations.
//! Knows the kinds of stage by their contract; unaware of keys, the store and execution.

mod check;
mod de;
mod diagnostic;
mod load;
mod points;
mod stage;
mod sweep;
mod value;
mod vars;

pub(crate) use check::{Pipeline, Point};
pub(crate) use diagnostic::{Diagnostic, Diagnostics, Sources};
#[cfg(test)]
pub(crate) use load::load;
pub(crate) use load::{COMMAND_LINE, Document};
pub(crate) use stage::StageDecl;
