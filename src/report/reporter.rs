//! The interface of everything that shows a run.

use crate::scheduler::RunEvent;

/// Shows a run while it happens.
pub(crate) trait Reporter {
    /// Called for every event.
    fn on(&mut self, event: &RunEvent<'_>);

    /// Whether it shows how long the run will still take.
    fn shows_outlook(&self) -> bool {
        false
    }
}
