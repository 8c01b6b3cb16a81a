//! How much a decoder may read, so that a limit holds before memory or disk is taken. Independent of formats.

use std::{
    cell::Cell,
    io::{self, Read, Seek, SeekFrom},
    rc::Rc,
};

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// That of everything together.
    Total,
    /// That of the present part, which the decoder keeps in memory.
    Part,
}

/// The bytes that may still be read. A decoder often hides or rewords the error of its reader, so the reason is kept here.
#[derive(Debug)]
pub(crate) struct Budget {
    total: Cell<u64>,
    part: Cell<u64>,
    reached: Cell<Option<Limit>>,
}

impl Budget {
    /// Allows `total` bytes.
    pub(crate) fn new(total: u64) -> Rc<Self> {
        Rc::new(Self { total: Cell::new(total), part: Cell::new(u64::MAX), reached: Cell::new(None) })
    }

    /// Begins a part, of which at most `bytes` may be read.
    pub(crate) fn begin_part(&self, bytes: u64) {
        self.part.set(bytes);
    }

    /// Ends the part: only the total counts.
    pub(crate) fn end_part(&self) {
        self.part.set(u64::MAX);
    }

    /// The limit that was reached, if one was.
    pub(crate) fn reached(&self) -> Option<Limit> {
        self.reached.get()
    }
}

/// A reader with a budget.
#[derive(Debug)]
pub(crate) struct Budgeted<R> {
    inner: R,
    budget: Rc<Budget>,
}

impl<R> Budgeted<R> {
    pub(crate) fn new(inner: R, budget: &Rc<Budget>) -> Self {
        Self { inner, budget: budget.clone() }
    }
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (total, part) = (self.budget.total.get(), self.budget.part.get());
        let allowed = usize::try_from(total.min(part)).unwrap_or(usize::MAX).min(buffer.len());
        if allowed == 0 && !buffer.is_empty() {
            // The end of the data is not beyond any limit.
            if self.inner.read(&mut [0])? == 0 {
                return Ok(0);
            }
            self.budget.reached.set(Some(if total == 0 { Limit::Total } else { Limit::Part }));
            return Err(io::Error::other("more data than allowed"));
        }
        let bytes = self.inner.read(&mut buffer[..allowed])?;
        self.budget.total.set(total - bytes as u64);
        self.budget.part.set(part - bytes as u64);
        Ok(bytes)
    }
}

impl<R: Seek> Seek for Budgeted<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reader_ends_at_its_budget() {
        let data = [7; 100];
        let budget = Budget::new(50);
        let mut reader = Budgeted::new(data.as_slice(), &budget);
        budget.begin_part(10);
        let mut found = Vec::new();
        assert!(reader.read_to_end(&mut found).is_err() && found.len() == 10);
        assert_eq!(budget.reached(), Some(Limit::Part));
        budget.end_part();
        assert!(reader.read_to_end(&mut found).is_err());
        assert_eq!(budget.reached(), Some(Limit::Total));
    }

    #[test]
    fn data_may_be_as_long_as_its_budget() {
        let budget = Budget::new(100);
        let mut reader = Budgeted::new([7; 100].as_slice(), &budget);
        assert_eq!(reader.read_to_end(&mut Vec::new()).unwrap(), 100);
        assert_eq!(budget.reached(), None);
    }
}
