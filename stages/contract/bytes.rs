//! Sizes as people write them: `16GB`, `512 MiB`, or a number of bytes. Independent of what they are sizes of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_lowercase();
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale);
        match (number.parse::<f64>(), scale) {
            (Ok(number), Some(scale)) => Ok(Self((number * scale as f64).round() as u64)),
            _ => Err(format!("`{text}` is not a size: write a number and a unit, as in `16GB` or `512MiB`")),
        }
    }
}

/// `1.9 GB`, in powers of ten as disks and hubs count.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for next in ["kB", "MB", "GB", "TB"] {
            if value < 999.5 {
                break;
            }
            (value, unit) = (value / 1000.0, next);
        }
        if unit == "B" || value >= 99.95 { write!(f, "{value:.0} {unit}") } else { write!(f, "{value:.1} {unit}") }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"16GB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size can't be negative"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_ten_and_of_two() {
        let read = |text: &str| text.parse::<ByteSize>().ok().map(|size| size.0);
        assert_eq!(
            ["16GB", "1.5 kB", "512 MiB", "7", " 3 b "].map(read),
            [Some(16_000_000_000), Some(1500), Some(512 << 20), Some(7), Some(3)]
        );
        let shown = [12, 1_000, 1_234_567, 999_999_999].map(|bytes| ByteSize(bytes).to_string());
        assert_eq!(shown, ["12 B", "1.0 kB", "1.2 MB", "1.0 GB"]);
        assert_eq!(["", "GB", "12 apples", "-3GB", "1.2.3MB"].map(read), [None; 5]);
    }
}
