//! Shows a run to programs: each event as a line of JSON on standard output.

use super::{print::print, reporter::Reporter};
use crate::scheduler::RunEvent;

/// JSON lines.
pub(super) struct Json;

impl Reporter for Json {
    fn on(&mut self, event: &RunEvent<'_>) {
        if let Ok(line) = serde_json::to_string(event) {
            print(&line);
        }
    }
}
