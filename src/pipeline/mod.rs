//! Reads pipeline files: from text to checked declarations of stages.
//! Uses kinds of stages only through their contract. Independent of cache keys, the store and execution.

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
