//! The objects of a bucket.

use crate::net::s3::S3Source;

/// Whether `BUCKET/PREFIX`, or `BUCKET` alone, can be the address of objects.
pub fn is_address(text: &str) -> bool {
    S3Source::parse(text).is_ok()
}
