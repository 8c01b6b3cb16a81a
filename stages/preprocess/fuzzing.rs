//! Annotation files, for `crate::fuzzing`.

use super::annotations::Annotated;
use crate::text::json_records::{Cursor, Records, short};

/// An annotation file: a JSON array or JSON lines. Reading on from the middle gives the same records as reading once.
pub(crate) fn records(bytes: &[u8]) {
    let mut records = Records::new(bytes, Cursor::default());
    let (mut all, mut middle) = (Vec::new(), None);
    while let Some(record) = records.next() {
        if let Ok(record) = &record {
            match record.parse() {
                Ok(annotation) => drop(annotation),
                Err(error) => drop(short(&error.message)),
            }
            let _ = record.id();
        }
        all.push(record.map(|record| (record.line, record.text)));
        if all.len() == 1 {
            middle = Some(records.cursor());
        }
    }
    if let Some(cursor) = middle {
        let rest: Vec<_> = Records::new(bytes, cursor).map(|record| record.map(|it| (it.line, it.text))).collect();
        assert_eq!(rest, all[1..], "a cursor loses records");
    }
}
