//! What the user wrote: from the text of a pipeline file to checked stage declarations.
//! Knows kinds of stages only by their contract. Independent of keys, the store and execution.

mod check;
mod de;
mod declaration;
mod diagnostic;
mod graph;
mod load;
mod points;
mod read;
mod stage;
mod sweep;
mod value;
mod vars;

pub(crate) use declaration::{Pipeline, Point, StageDecl};
pub(crate) use diagnostic::{Diagnostic, Diagnostics, Sources};
pub(crate) use graph::Graph;
#[cfg(test)]
pub(crate) use load::load;
pub(crate) use load::{COMMAND_LINE, Document};
