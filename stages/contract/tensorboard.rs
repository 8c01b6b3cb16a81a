//! TensorBoard's event files: figures by step, for `tensorboard --logdir`. Records of TFRecord (length, its checksum,
//! content, its checksum) that hold `tensorflow.Event` messages of protocol buffers. Independent of what the figures mean.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// An event file that is being written.
pub(crate) struct EventFile(File);

impl EventFile {
    /// Creates the file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut file = Self(File::create(path)?);
        let mut event = Message::default();
        event.bytes(3, b"brain.Event:2");
        file.record(&event.0)?;
        Ok(file)
    }

    /// Adds the figures of a step that ended at `time`, in seconds since 1970.
    pub(crate) fn add<'a>(
        &mut self,
        step: u64,
        time: f64,
        values: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> io::Result<()> {
        let mut summary = Message::default();
        for (name, figure) in values {
            let mut value = Message::default();
            value.bytes(1, name.as_bytes());
            value.float(2, figure as f32);
            summary.bytes(1, &value.0);
        }
        let mut event = Message::default();
        event.double(1, time);
        event.number(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, content: &[u8]) -> io::Result<()> {
        let length = (content.len() as u64).to_le_bytes();
        // In one write, so that a reader never sees half a record.
        self.0
            .write_all(&[&length, &masked(&length).to_le_bytes()[..], content, &masked(content).to_le_bytes()].concat())
    }
}

/// TFRecord's checksum: CRC-32C, rotated and shifted, since a checksum of what holds checksums is weak.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A message of protocol buffers: fields by number, one after the other.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u64, kind: u64) {
        self.varint(field << 3 | kind);
    }

    /// Seven bits per byte, the lowest first; the eighth says that more follow.
    fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The bytes that tensorboard's own `RecordWriter` (2.21.0) writes for the same events.
    #[test]
    fn bytes_are_tensorboards() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut events = EventFile::create(file.path()).unwrap();
        events.add(300, 1.5, [("loss", 0.25)]).unwrap();
        let bytes = std::fs::read(file.path()).unwrap();
        let expected =
            (0..TENSORBOARD.len()).step_by(2).map(|at| u8::from_str_radix(&TENSORBOARD[at..at + 2], 16).unwrap());
        assert_eq!(bytes, expected.collect::<Vec<u8>>());
    }

    const TENSORBOARD: &str = concat!(
        "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc9851291b000000000000001a0d9e130900000000",
        "0000f83f10ac022a0d0a0b0a046c6f7373150000803e9908deed",
    );
}
