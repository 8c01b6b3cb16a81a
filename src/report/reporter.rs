//! What shows a run while it happens.

use crate::scheduler::RunEvent;

/// Shows a run as it goes.
pub(crate) trait Reporter {
    /// Called for everything that happens.
    fn on(&mut self, event: &RunEvent<'_>);
}
