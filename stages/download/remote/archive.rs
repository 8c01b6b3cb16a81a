//! Unpacks archives, trusting neither their names nor their sizes. Independent of where they come from.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use crate::{
    Job, StageError,
    contract::event::{BYTES, Progress},
    net::budget::{Budget, Budgeted, Limit},
};

#[cfg(test)]
mod tests;

/// Largest ratio of unpacked to packed size: far above that of texts and images, far below that of a zip bomb.
const LARGEST_RATIO: u64 = 200;
/// Unpacked bytes that are allowed at any ratio.
const ALWAYS_ALLOWED: u64 = 64 << 20;
/// The most memory that xz may take: the file chooses how much, and `xz -9` needs 65 MB.
const XZ_MEMORY: u64 = 256 << 20;
/// Largest name of an entry with everything else that is said of it, in bytes: the decoder keeps them in memory.
const LONGEST_NAME: u64 = 1 << 20;
/// Largest list of entries in bytes, at the end of a zip file. The decoder keeps all of it in memory.
const LONGEST_LIST: u64 = 256 << 20;

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::download) enum Format {
    Zip,
    Tar,
    TarGz,
    TarZst,
    TarXz,
}

impl Format {
    /// The format of a file with this name.
    pub(in crate::download) fn of(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let ends: [(&str, Self); 8] = [
            (".zip", Self::Zip),
            (".tar", Self::Tar),
            (".tar.gz", Self::TarGz),
            (".tgz", Self::TarGz),
            (".tar.zst", Self::TarZst),
            (".tzst", Self::TarZst),
            (".tar.xz", Self::TarXz),
            (".txz", Self::TarXz),
        ];
        ends.iter().find(|(end, _)| name.ends_with(end)).map(|(_, format)| *format)
    }
}

/// What the archives of a source held.
#[derive(Debug, Default)]
pub(in crate::download) struct Unpacked {
    files: u64,
    bytes: u64,
}

impl Unpacked {
    pub(in crate::download) fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }

    pub(in crate::download) fn report(&self, job: &Job) {
        if self.files > 0 {
            job.result("unpacked_files", self.files as f64);
            job.result("unpacked_bytes", self.bytes as f64);
        }
    }
}

/// What `flate2` says of what follows the end of a gzip file and is not another one, such as zeros from a tape.
const NOT_GZIP: &str = "invalid gzip header";

/// Unpacks `archive` into `folder`. Errors call the archive `name`.
pub(in crate::download) fn unpack(
    job: &Job,
    archive: &Path,
    name: &str,
    format: Format,
    folder: &Path,
) -> Result<Unpacked, StageError> {
    let bytes = fs::metadata(archive).map_err(StageError::io(archive))?.len();
    let file = File::open(archive).map_err(StageError::io(archive))?;
    let allowed = bytes.saturating_mul(LARGEST_RATIO).max(ALWAYS_ALLOWED);
    let budget = Budget::new(if format == Format::Zip { u64::MAX } else { allowed });
    let mut unpacking = Unpacking { job, name, folder, allowed, budget, written: 0, files: 0, total: 0 };
    let reader = BufReader::with_capacity(1 << 20, file);
    match format {
        Format::Zip => unpacking.zip(reader)?,
        Format::Tar => unpacking.tar(reader)?,
        Format::TarGz => unpacking.tar(flate2::bufread::MultiGzDecoder::new(reader))?,
        Format::TarZst => {
            let decoder = zstd::Decoder::with_buffer(reader).map_err(|error| unpacking.damaged(&error.to_string()))?;
            unpacking.tar(decoder)?;
        }
        Format::TarXz => {
            let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                .map_err(|error| unpacking.damaged(&error.to_string()))?;
            unpacking.tar(liblzma::bufread::XzDecoder::new_stream(reader, stream))?;
        }
    }
    if unpacking.files == 0 {
        return Err(StageError::failed(format!("the archive {name} contains no files"), "check `source`"));
    }
    Ok(Unpacked { files: unpacking.files, bytes: unpacking.written })
}

struct Unpacking<'a> {
    job: &'a Job,
    name: &'a str,
    folder: &'a Path,
    allowed: u64,
    budget: Rc<Budget>,
    written: u64,
    files: u64,
    /// Unpacked size in bytes according to the archive; 0 if unknown.
    total: u64,
}

impl Unpacking<'_> {
    fn zip(&mut self, reader: BufReader<File>) -> Result<(), StageError> {
        self.budget.begin_part(LONGEST_LIST);
        let reader = Budgeted::new(reader, &self.budget);
        let mut archive = zip::ZipArchive::new(reader).map_err(|error| self.damaged(&error.to_string()))?;
        self.budget.end_part();
        self.total = archive.decompressed_size().map_or(0, |bytes| bytes as u64);
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).map_err(|error| self.damaged(&error.to_string()))?;
            let name = entry.name().map_err(|error| self.damaged(&error.to_string()))?.into_owned();
            if entry.is_symlink() {
                return Err(self.refused(&name, "is a link"));
            }
            if entry.is_dir() {
                self.target(&name)?;
            } else {
                self.write(&name, &mut entry)?;
            }
        }
        Ok(())
    }

    fn tar(&mut self, reader: impl Read) -> Result<(), StageError> {
        let mut archive = tar::Archive::new(Budgeted::new(reader, &self.budget));
        let mut entries = archive.entries().map_err(|error| self.damaged(&error.to_string()))?;
        loop {
            self.job.check_cancelled()?;
            self.budget.begin_part(LONGEST_NAME);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(|error| self.damaged(&error.to_string()))?;
            self.budget.end_part();
            let name = match String::from_utf8(entry.path_bytes().into_owned()) {
                Ok(name) => name,
                Err(error) => {
                    let name = error.as_bytes().escape_ascii().to_string();
                    return Err(self.refused_name(&name, "is not UTF-8"));
                }
            };
            match entry.header().entry_type() {
                kind if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() => {
                    self.write(&name, &mut entry)?;
                }
                kind if kind.is_dir() => drop(self.target(&name)?),
                kind if kind.is_pax_global_extensions() => {}
                _ => return Err(self.refused(&name, "is neither a file nor a folder")),
            }
            // What follows an entry without content would count as a part of the next name.
            io::copy(&mut entry, &mut io::sink()).map_err(|error| self.damaged(&error.to_string()))?;
        }
        self.budget.end_part();
        // After the last entry come the checksums of what was compressed.
        let (mut rest, mut buffer) = (archive.into_inner(), vec![0; 1 << 17]);
        loop {
            self.job.check_cancelled()?;
            match rest.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                // Something else follows, whose checksum has been found right before.
                Err(error) if error.to_string() == NOT_GZIP => return Ok(()),
                Err(error) => return Err(self.damaged(&error.to_string())),
            }
        }
    }

    /// The path that an entry is written to, which is never outside the folder.
    fn target(&self, name: &str) -> Result<PathBuf, StageError> {
        if name.contains(char::is_control) {
            return Err(self.refused_name(&name.escape_debug().to_string(), "contains control characters"));
        }
        let mut target = self.folder.to_path_buf();
        for part in Path::new(name).components() {
            match part {
                Component::Normal(part) if !part.to_string_lossy().contains('\\') => target.push(part),
                Component::CurDir => {}
                _ => return Err(self.refused(name, "would lie outside the folder")),
            }
        }
        Ok(target)
    }

    fn write(&mut self, name: &str, content: &mut impl Read) -> Result<(), StageError> {
        let target = self.target(name)?;
        if target == self.folder {
            return Err(self.refused(name, "has no name"));
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(StageError::io(parent))?;
        }
        // The folder was empty when the stage began, so this is another entry, or a file beside the archive. The disk also knows
        // when it takes two names for one.
        let mut file = File::create_new(&target).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.refused_name(name, "is the name of two entries"),
            _ => StageError::Io { path: target.clone(), source: error },
        })?;
        let mut buffer = vec![0; 1 << 17];
        loop {
            self.job.check_cancelled()?;
            let bytes = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.damaged(&format!("{name}: {error}"))),
            };
            self.written += bytes as u64;
            if self.written > self.allowed {
                return Err(self.bomb());
            }
            file.write_all(&buffer[..bytes]).map_err(StageError::io(&target))?;
        }
        self.files += 1;
        let progress = Progress::new(self.written as usize, self.total as usize, BYTES);
        self.job.progress(progress.with("unpacked_files", self.files as f64));
        Ok(())
    }

    fn bomb(&self) -> StageError {
        StageError::failed(
            format!("the archive {} unpacks to over {LARGEST_RATIO} times its size: it may be a zip bomb", self.name),
            "if you trust it, unpack it yourself and set `source` to the path of the folder",
        )
    }

    /// The error for what a decoder can't read.
    fn damaged(&self, message: &str) -> StageError {
        match self.budget.reached() {
            Some(Limit::Total) => return self.bomb(),
            Some(Limit::Part) => {
                let what = format!(
                    "can't unpack the archive {}: an entry's name and attributes take more than {LONGEST_NAME} bytes, or \
                     its list of entries more than {LONGEST_LIST}",
                    self.name
                );
                return StageError::failed(what, "unpack it yourself and set `source` to the path of the folder");
            }
            None => {}
        }
        let help =
            "the file is damaged or has another format: check `source`, or set `unpack = false` to keep it as it is";
        StageError::failed(format!("can't unpack the archive {}: {message}", self.name), help)
    }

    fn refused_name(&self, entry: &str, why: &str) -> StageError {
        StageError::failed(
            format!("refused to unpack the archive {}: the name `{entry}` {why}", self.name),
            "unpack it yourself, rename the file, and set `source` to the path of the folder",
        )
    }

    fn refused(&self, entry: &str, why: &str) -> StageError {
        StageError::failed(
            format!("refused to unpack the archive {}: its entry `{entry}` {why}", self.name),
            "unpack it yourself and set `source` to the path of the folder",
        )
    }
}
