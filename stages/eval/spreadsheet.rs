//! Writes a table as an Excel file with reproducible bytes. Independent of its content.

use rust_xlsxwriter::{DocProperties, ExcelDateTime, Workbook, XlsxError};

use crate::StageError;

/// One sheet with a row of names above the other rows. Cells in the column `index` are numbers, all others text.
pub(super) fn xlsx(names: &[String], rows: impl Iterator<Item = Vec<String>>) -> Result<Vec<u8>, StageError> {
    let write = || -> Result<Vec<u8>, XlsxError> {
        let mut workbook = Workbook::new();
        workbook.set_properties(&DocProperties::new().set_creation_datetime(&ExcelDateTime::from_ymd(2023, 7, 12)?));
        let sheet = workbook.add_worksheet();
        for (row, cells) in std::iter::once(names.to_vec()).chain(rows).enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                let (row, column) = (row as u32, column as u16);
                match cell.parse::<u32>().ok().filter(|_| names[column as usize] == "index") {
                    Some(number) => sheet.write_number(row, column, number)?,
                    // Never a formula, whatever the answer begins with.
                    None => sheet.write_string(row, column, cell)?,
                };
            }
        }
        workbook.save_to_buffer()
    };
    write().map_err(|error| {
        StageError::failed(format!("can't write the table for the server: {error}"), "set `limit` to fewer questions")
    })
}
