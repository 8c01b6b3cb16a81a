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

/// What a time is called that no clock has shown. Receipts and records are files, in which anything may stand.
const IMPOSSIBLE: &str = "an impossible time";
/// A hundred years, in seconds.
const CENTURY: f64 = 100.0 * 365.25 * 86_400.0;

/// `0.03 s`, `12.3 s`, `4 min 05 s`, `2 h 10 min`.
pub(super) fn duration(seconds: f64) -> String {
    if !(0.0..CENTURY).contains(&seconds) {
        return IMPOSSIBLE.into();
    }
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

/// A guess: `a few seconds`, `about 40 s`, `about 4 min`, `about 1 h 40 min`, `about 3 days`.
pub(super) fn about(seconds: f64) -> String {
    let in_units = |unit: f64| (seconds / unit).round() as u64;
    match seconds {
        ..8.0 => "a few seconds".into(),
        ..55.0 => format!("about {} s", 10 * in_units(10.0)),
        ..5370.0 => format!("about {} min", in_units(60.0).max(1)),
        ..170_000.0 => match (in_units(600.0) / 6, in_units(600.0) % 6) {
            (hours, 0) => format!("about {hours} h"),
            (hours, tens) => format!("about {hours} h {tens}0 min"),
        },
        _ => format!("about {} days", in_units(86_400.0)),
    }
}

/// `2026-11-25 00:42` in local time, from seconds since 1970.
pub(super) fn time(seconds: u64) -> String {
    let stamp = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let Some(stamp) = stamp else { return IMPOSSIBLE.into() };
    stamp.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_can_not_be_are_called_so() {
        for seconds in [-1.0, 1e300, f64::NAN, f64::INFINITY] {
            assert_eq!(duration(seconds), IMPOSSIBLE, "{seconds}");
        }
        assert_eq!([time(u64::MAX), time(1 << 62)], [IMPOSSIBLE, IMPOSSIBLE]);
        assert!(time(1_795_884_248).starts_with("2026-11-2"));
    }

    #[test]
    fn guesses_are_round() {
        let guesses = [2.0, 12.0, 54.0, 58.0, 231.0, 5369.0, 5990.0, 7200.0, 250_000.0].map(about);
        let seconds = ["a few seconds", "about 10 s", "about 50 s", "about 1 min", "about 4 min", "about 89 min"];
        assert_eq!(guesses[..6], seconds);
        assert_eq!(guesses[6..], ["about 1 h 40 min", "about 2 h", "about 3 days"]);
    }

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
