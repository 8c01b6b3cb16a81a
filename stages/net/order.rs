//! What a request asks for, and what it sends. Independent of where it goes.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom},
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ureq::{SendBody, http::Method};

/// A request's method and body. It may be sent several times.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Get,
    Head,
    Delete,
    /// Sends a text of this content type.
    Post {
        content_type: &'static str,
        text: Arc<[u8]>,
    },
    /// Sends bytes.
    Store {
        bytes: Arc<[u8]>,
    },
    /// Sends a part of a file, and adds to both counts what has left.
    Put {
        file: PathBuf,
        range: Range<u64>,
        sent: [Arc<AtomicU64>; 2],
    },
}

impl Order {
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Delete => Method::DELETE,
            Self::Post { .. } => Method::POST,
            Self::Put { .. } | Self::Store { .. } => Method::PUT,
        }
    }

    /// Whether it only asks, so that it may be sent again without a thought.
    pub(super) fn only_asks(&self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }

    /// Whether a redirect with this status is followed. What is sent must not turn into a question.
    pub(super) fn follows(&self, status: u16) -> bool {
        matches!((self, status), (_, 307 | 308) | (Self::Get, 301..=303))
    }

    /// The headers that describe the body. Object stores want to know its length.
    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Get | Self::Head | Self::Delete => Vec::new(),
            Self::Store { bytes } => vec![("content-length", bytes.len().to_string())],
            Self::Post { content_type, text } => {
                vec![("content-type", (*content_type).into()), ("content-length", text.len().to_string())]
            }
            Self::Put { range, .. } => vec![("content-length", (range.end - range.start).to_string())],
        }
    }

    /// The body, from its beginning.
    pub(super) fn body(&self) -> io::Result<SendBody<'static>> {
        Ok(match self {
            Self::Get | Self::Head | Self::Delete => SendBody::none(),
            Self::Store { bytes } => SendBody::from_owned_reader(Cursor::new(bytes.clone())),
            Self::Post { text, .. } => SendBody::from_owned_reader(Cursor::new(text.clone())),
            Self::Put { file, range, sent } => {
                let mut file = File::open(file)?;
                file.seek(SeekFrom::Start(range.start))?;
                let part = file.take(range.end - range.start);
                SendBody::from_owned_reader(Counted { part, sent: sent.clone() })
            }
        })
    }
}

/// Counts what was read.
struct Counted<R> {
    part: R,
    sent: [Arc<AtomicU64>; 2],
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.part.read(buffer)?;
        for count in &self.sent {
            count.fetch_add(bytes as u64, Relaxed);
        }
        Ok(bytes)
    }
}
