//! What archives, hubs and object stores send, for `crate::fuzzing`.

use std::{collections::BTreeMap, fs};

use rusty_s3::actions::ListObjectsV2;

use super::remote::{
    archive::{Format, unpack},
    hub::HubSource,
};
use crate::{
    Job,
    contract::{
        device::Device,
        job::{JobSpec, Runtime},
    },
    net::{
        listing::{Listing, is_safe_name},
        patterns::Patterns,
        s3::S3Source,
    },
    scratch::Scratch,
};

/// An archive, whose format the first byte chooses. Nothing is written outside the output folder.
pub(crate) fn archive(bytes: &[u8]) {
    const NAMES: [&str; 5] = ["a.zip", "a.tar", "a.tar.gz", "a.tar.zst", "a.tar.xz"];
    let Some((choice, content)) = bytes.split_first() else { return };
    let name = NAMES[usize::from(*choice) % NAMES.len()];
    let Some(format) = Format::of(name) else { return };
    let scratch = Scratch::with(name, content);
    let work = scratch.path("work");
    let spec = JobSpec {
        kind: String::new(),
        config: serde_json::Value::Null,
        runtime: Runtime::default(),
        device: Device::default(),
        workers: 1,
        inputs: BTreeMap::new(),
        sources: BTreeMap::new(),
        work: work.clone(),
        seed: 0,
    };
    let job = Job::new(spec, Box::new(|_| {}), std::sync::Arc::default());
    if fs::create_dir_all(job.output()).is_ok() {
        let _ = unpack(&job, &scratch.path(name), name, format, &job.output());
    }
    assert_eq!(scratch.names(), [name, "work"], "something was written outside the folder");
}

/// A hub's answer about a repository, and a list that an earlier run has kept. Names in them stay inside a folder.
pub(crate) fn hub(bytes: &[u8]) {
    let listings = [
        std::str::from_utf8(bytes).ok().and_then(|text| {
            let (source, all) = (HubSource::parse("owner/repo").ok()?, Patterns::new(&[]).ok()?);
            source.listing("https://hub.example", text, &all).ok()
        }),
        serde_json::from_slice(bytes).ok(),
    ];
    listings.iter().flatten().for_each(stays_inside);
}

/// A page of an object store's list.
pub(crate) fn s3(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(page) = ListObjectsV2::parse_response(text) else { return };
    let (Ok(source), Ok(all)) = (S3Source::parse("bucket/folder/"), Patterns::new(&[])) else { return };
    if let Ok(listing) = source.files("folder/", page.contents, &all) {
        stays_inside(&listing);
    }
}

fn stays_inside(listing: &Listing) {
    assert!(listing.files.iter().all(|file| is_safe_name(&file.name)), "{listing:?}");
}
