//! Files on other machines: listed, transferred in chunks that survive a cut, checked.
//! Independent of what the files are for.

pub(crate) mod address;
mod attempt;
pub(crate) mod budget;
mod chunks;
pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod listing;
pub(crate) mod order;
pub(crate) mod patterns;
mod profile;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod transfer;
pub(crate) mod verify;
