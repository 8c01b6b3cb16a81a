//! Object stores that speak S3: lists objects, signs requests and explains refusals. Independent of how objects are
//! transferred.

use std::{env, fmt, time::Duration};

use rusty_s3::{
    Bucket, BucketError, Credentials, S3Action, UrlStyle,
    actions::{CreateMultipartUpload, ListObjectsV2, ListObjectsV2Response, list_objects_v2::ListObjectsContent},
};
use ureq::{Body, http::Response};

use super::{
    address::redacted,
    http::{Attempt, Client, RequestError, Watch},
    listing::{Listing, MOST_FILES, RemoteFile, is_safe_name, too_many_files},
    order::Order,
    patterns::Patterns,
    profile::Profile,
};
use crate::StageError;

/// Validity of a signature. Each request has its own, which only needs to be valid when the request begins.
const SIGNED_FOR: Duration = Duration::from_hours(1);

/// The most pages of a list. A page usually has 1000 objects.
const MOST_PAGES: usize = 10 * MOST_FILES / 1000;

/// `s3://bucket/key`: the key of an object, or of a folder of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct S3Source {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

impl S3Source {
    /// Parses what follows `s3://`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (bucket, key) = text.split_once('/').unwrap_or((text, ""));
        let is_bucket = bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
            && bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !is_bucket || !(key.is_empty() || is_path(key.strip_suffix('/').unwrap_or(key))) {
            return Err("must be `s3://BUCKET/KEY`, or `s3://BUCKET/FOLDER/` for all objects below it".into());
        }
        Ok(Self { bucket: bucket.into(), key: key.into() })
    }

    /// Whether the source may name a single object.
    fn may_be_object(&self) -> bool {
        !self.key.is_empty() && !self.key.ends_with('/')
    }

    /// Lists the object that the source names; if there is none, the objects below it that match `patterns`.
    pub(crate) fn list(
        &self,
        store: &Store,
        patterns: &[String],
        client: &Client,
        watch: &impl Watch,
    ) -> Result<Listing, StageError> {
        let url = self.to_string();
        if self.may_be_object() && client.retry(watch, |attempt| attempt.exists(&url))? {
            let name = self.key.rsplit('/').next().unwrap_or_default();
            Patterns::new(patterns)?.all_used(&[name.into()], self)?;
            return Ok(Listing::of(vec![RemoteFile::new(name, url)]));
        }
        let prefix = if self.may_be_object() { format!("{}/", self.key) } else { self.key.clone() };
        let (mut objects, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = client.retry(watch, |attempt| store.page(attempt, &prefix, after.as_deref()))?;
            // Some tools create an empty object for a folder.
            objects.extend(page.contents.into_iter().filter(|object| !object.key.ends_with('/')));
            if objects.len() > MOST_FILES {
                return Err(too_many_files(self));
            }
            pages += 1;
            after = page.next_continuation_token;
            if after.is_none() {
                break;
            }
            // A server that always names a next page would keep this busy for ever.
            if pages > MOST_PAGES {
                return Err(too_many_files(self));
            }
            if watch.stopped() {
                return Err(StageError::Cancelled);
            }
        }
        if objects.is_empty() {
            let below = format!("below s3://{}/{prefix}", self.bucket);
            let message = if self.may_be_object() {
                format!("there is no object {self}, and none {below}")
            } else {
                format!("there is no object {below}")
            };
            return Err(StageError::failed(message, "check `source`"));
        }
        self.files(&prefix, objects, &Patterns::new(patterns)?)
    }

    /// The objects below `prefix` that are wanted, as files.
    pub(crate) fn files(
        &self,
        prefix: &str,
        objects: Vec<ListObjectsContent>,
        wanted: &Patterns,
    ) -> Result<Listing, StageError> {
        let (mut names, mut files) = (Vec::new(), Vec::new());
        for object in objects {
            let url = format!("s3://{}/{}", self.bucket, object.key);
            let name = object.key.strip_prefix(prefix).filter(|name| is_path(name) && is_safe_name(name)).ok_or_else(
                || {
                    let help = "rename the object, or set `source` to a folder without it";
                    StageError::failed(
                        format!("{} can't be a file: its key is not a valid path", url.escape_debug()),
                        help,
                    )
                },
            )?;
            names.push(name.to_string());
            if wanted.matches(name) {
                files.push(RemoteFile { size: object.size, etag: object.etag, ..RemoteFile::new(name, url) });
            }
        }
        wanted.all_used(&names, self)?;
        Ok(Listing::of(files))
    }
}

impl fmt::Display for S3Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// Whether a key, or the end of one, is a valid file path. Other keys would not survive in a URL either.
fn is_path(key: &str) -> bool {
    key.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The address of a bucket, and the credentials for it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    bucket: Bucket,
    credentials: Option<Credentials>,
}

impl Store {
    /// Reads variables as AWS's own tools do, and their files. Without credentials, requests are not signed.
    pub(crate) fn from_env(source: &S3Source) -> Result<Self, StageError> {
        Self::of_machine(source, |name| env::var(name).ok())
    }

    /// Reads the variables `var`, and what they lack in the files that they name.
    pub(crate) fn of_machine(source: &S3Source, var: impl Fn(&str) -> Option<String>) -> Result<Self, StageError> {
        let set = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let profile = Profile::of(set)?;
        Self::of(source, |name| match name {
            // A token belongs to its keys.
            "AWS_SESSION_TOKEN" if set("AWS_ACCESS_KEY_ID").is_none() => profile.get(name, set),
            // Its other name goes before the profile.
            "AWS_REGION" if set("AWS_DEFAULT_REGION").is_some() => set(name),
            _ => set(name).or_else(|| profile.get(name, set)),
        })
    }

    /// Reads variables as AWS's own tools do. Without credentials, requests are not signed.
    pub(crate) fn of(source: &S3Source, var: impl Fn(&str) -> Option<String>) -> Result<Self, StageError> {
        let first = |names: &[&str]| names.iter().find_map(|name| var(name).filter(|value| !value.trim().is_empty()));
        let (key, secret) = (first(&["AWS_ACCESS_KEY_ID"]), first(&["AWS_SECRET_ACCESS_KEY"]));
        let credentials = match (key, secret, first(&["AWS_SESSION_TOKEN"])) {
            (Some(key), Some(secret), Some(token)) => Some(Credentials::new_with_token(key, secret, token)),
            (Some(key), Some(secret), None) => Some(Credentials::new(key, secret)),
            (None, None, _) => None,
            _ => {
                return Err(StageError::failed(
                    "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
                    "set both, or neither for a public bucket",
                ));
            }
        };
        let region = first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".into());
        let own = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        // AWS's certificates don't cover bucket names with a dot; other servers are often reached by IP address.
        let in_host = own.is_none() && source.bucket.bytes().all(|byte| byte != b'.' && !byte.is_ascii_uppercase());
        let style = if in_host { UrlStyle::VirtualHost } else { UrlStyle::Path };
        let endpoint = own.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        let url = endpoint.parse().map_err(BucketError::ParseError);
        let bucket = url.and_then(|url| Bucket::new(url, style, source.bucket.clone(), region)).map_err(|error| {
            let help = "correct AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, such as `https://minio.example.org:9000`";
            StageError::failed(format!("{source}: {} is not a valid S3 endpoint ({error})", redacted(&endpoint)), help)
        })?;
        Ok(Self { bucket, credentials })
    }

    /// The signed address of an `s3://` URL, for one order. Everything else uses the URL, so that no signature is stored or shown.
    pub(crate) fn address(&self, url: &str, order: &Order) -> String {
        let key = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).map(|(_, key)| key);
        let Some(key) = key else { return url.into() };
        let credentials = self.credentials.as_ref();
        let signed = match order {
            Order::Head => self.bucket.head_object(credentials, key).sign(SIGNED_FOR),
            Order::Delete => self.bucket.delete_object(credentials, key).sign(SIGNED_FOR),
            Order::Put { .. } | Order::Store { .. } => self.bucket.put_object(credentials, key).sign(SIGNED_FOR),
            Order::Get | Order::Post { .. } => self.bucket.get_object(credentials, key).sign(SIGNED_FOR),
        };
        signed.into()
    }

    /// The address at which an upload in parts begins.
    pub(crate) fn begin_parts(&self, key: &str) -> String {
        self.bucket.create_multipart_upload(self.credentials.as_ref(), key).sign(SIGNED_FOR).into()
    }

    /// The name of an upload in parts, in the answer to its beginning.
    pub(crate) fn upload_id(answer: &str) -> Option<String> {
        CreateMultipartUpload::parse_response(answer).ok().map(|answer| answer.upload_id().into())
    }

    /// The address of a part, from 1 on.
    pub(crate) fn part(&self, key: &str, number: u16, upload: &str) -> String {
        self.bucket.upload_part(self.credentials.as_ref(), key, number, upload).sign(SIGNED_FOR).into()
    }

    /// The address at which an upload in parts ends, and what is sent there: the `ETag` of each part.
    pub(crate) fn end_parts(&self, key: &str, upload: &str, etags: &[String]) -> (String, String) {
        let etags = etags.iter().map(String::as_str);
        let action = self.bucket.complete_multipart_upload(self.credentials.as_ref(), key, upload, etags);
        (action.sign(SIGNED_FOR).into(), action.body())
    }

    /// The address at which an upload in parts is given up.
    pub(crate) fn abort_parts(&self, key: &str, upload: &str) -> String {
        self.bucket.abort_multipart_upload(self.credentials.as_ref(), key, upload).sign(SIGNED_FOR).into()
    }

    /// Requests one page of the list of objects.
    pub(crate) fn page(
        &self,
        attempt: &Attempt<'_>,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<ListObjectsV2Response, RequestError> {
        let mut list = self.bucket.list_objects_v2(self.credentials.as_ref());
        list.with_prefix(prefix);
        if let Some(after) = after {
            list.with_continuation_token(after);
        }
        let text = attempt.get_text(list.sign(SIGNED_FOR).as_str())?;
        ListObjectsV2::parse_response(&text).map_err(|error| {
            let base = redacted(self.bucket.base_url().as_str());
            let help = "check that AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, if set, names a server that speaks S3";
            RequestError::Fatal(StageError::failed(format!("{base} doesn't list objects like S3: {error}"), help))
        })
    }

    /// Explains a response that refuses the request.
    pub(crate) fn refusal(&self, url: &str, response: &mut Response<Body>) -> StageError {
        let region = response.headers().get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        let region = region.filter(|region| *region != self.bucket.region()).map(Into::<String>::into);
        let text = response.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        let code = code.map_or_else(|| response.status().to_string(), |(code, _)| code.into());
        let (message, help) = match (code.as_str(), region) {
            (_, Some(region)) => ("its bucket is in another region".into(), format!("set AWS_REGION to `{region}`")),
            ("NoSuchBucket", _) => (format!("there is no bucket `{}`", self.bucket.name()), "check `source`".into()),
            ("NoSuchKey", _) => ("no such object".into(), "check `source`: it may have moved".into()),
            ("InvalidAccessKeyId", _) => {
                ("the server doesn't know this access key".into(), "correct AWS_ACCESS_KEY_ID".into())
            }
            ("SignatureDoesNotMatch", _) => {
                ("the server rejected the signature".into(), "correct AWS_SECRET_ACCESS_KEY".into())
            }
            ("ExpiredToken" | "InvalidToken", _) => {
                ("the session token is invalid or expired".into(), "set a new AWS_SESSION_TOKEN and its keys".into())
            }
            ("RequestTimeTooSkewed", _) => {
                ("this machine's clock differs from the server's".into(), "set the clock".into())
            }
            _ if response.status() == 403 && self.credentials.is_none() => (
                format!("access without credentials denied ({code})"),
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into(),
            ),
            _ if response.status() == 403 => (
                format!("access denied ({code})"),
                "ask the owner for permission to read the object and, if `source` is a folder, to list the bucket"
                    .into(),
            ),
            _ if response.status() == 404 => (format!("not found ({code})"), "check `source`".into()),
            _ => (format!("the server answered {code}"), "check `source`, AWS_REGION and the endpoint".into()),
        };
        StageError::failed(format!("{}: {message}", redacted(url)), help)
    }
}
