//! How a line of a log looks. Independent of what is logged, and of which lines are.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    registry::LookupSpan,
};

/// `2026-11-25 00:42:07.120 finetune: ...`: local time, as everywhere else. Other levels than INFO are named, and modules where it is
/// about the program itself.
pub(super) struct LogLine;

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S%.3f");
        write!(writer, "{now} ")?;
        let data = event.metadata();
        if *data.level() != Level::INFO {
            write!(writer, "{} ", data.level())?;
        }
        if *data.level() > Level::INFO {
            write!(writer, "{}: ", data.target())?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
