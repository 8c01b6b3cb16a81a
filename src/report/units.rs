//! Formats sizes, durations, counts and numbers for users.

use imp_stages::contract::bytes::ByteSize;
pub(super) use imp_stages::contract::event::figure;

/// `1.9 GB`, in powers of ten as disks and hubs count.
pub(super) fn bytes(count: u64) -> String {
    ByteSize(count).to_string()
}

/// `1 file`, `20 files`.
pub(super) fn files(count: u64) -> String {
    self::count(count as usize, "file")
}

/// `1 stage`, `3 stages`.
pub(super) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// `0.03 s`, `12.3 s`, `4 min 05 s`, `2 h 10 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    if seconds < 1.0 {
        format!("{seconds:.2} s")
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{} h {:02} min", whole / 3600, whole / 60 % 60)
    }
}

/// `2026-11-25 00:42` in local time, from seconds since 1970.
pub(super) fn time(seconds: u64) -> String {
    let stamp = jiff::Timestamp::from_second(seconds as i64).unwrap_or_default();
    stamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_figures_are_readable() {
        assert_eq!(
            [duration(0.034), duration(12.34), duration(245.0), duration(7800.0)],
            ["0.03 s", "12.3 s", "4 min 05 s", "2 h 10 min"]
        );
        assert_eq!(
            [figure(83.25), figure(0.0005), figure(1234.6), figure(2.0), figure(0.0)],
            ["83.25", "0.0005", "1235", "2", "0"]
        );
    }
}
