//! The stage on good and bad data.
