//! Converts an annotation file to records, in chunks that are tokenized and checked on all cores.
//! Independent of the file formats at both ends, which have their own readers and writers.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use globset::GlobSet;
use imp_model::{IMAGE_TOKEN, tensor::IGNORE};
use rayon::prelude::*;

use super::{
    annotations::{Annotated, Annotation, ParseError},
    config::{IMAGES, PreprocessConfig},
    faults::{check_rows, unreadable},
    lost::Reason,
    rejected::Rejected,
    sink::{Converted, Known, RecordSink, name_of},
};
use crate::{
    Job, StageError,
    contract::{
        event::{BYTES, Progress},
        paths::stays_inside,
    },
    data::mmap::map_file,
    image::pixels,
    model_folder::embedding_rows,
    net::patterns::patterns,
    text::{
        identity::identity,
        json_records::{Cursor, RawRecord, Records, short},
        tokenizer::{IMAGE_TEXT, TextTokenizer},
    },
};

/// Records in memory at a time, with their images.
const CHUNK: usize = 128;
/// Unusable records beyond the allowed number after which the stage gives up.
const ENOUGH_REJECTED: usize = 1000;
/// No system takes longer paths.
const LONGEST_PATH: usize = 4096;
const OUTSIDE_FOLDER: &str = "the image is in the data folder, and not in `image_folder`, which paths are relative to: set \
                              `image_folder = \".\"`";
const MISSING: &str = "image paths are relative to `image_folder` in the data folder (default: `images`): set it to the folder \
                       that holds them, or give the download with the images as `images`; `max_rejected` lets records be left out";
const REPEATED_FOLDER: &str = "image paths are relative to `image_folder`: remove that folder from the records' `image`, or \
                               set `image_folder = \".\"`";

/// What becomes of a record that is not unusable.
enum Made {
    Record(Converted),
    /// These patterns of `leave_out` match its images.
    LeftOut(Vec<usize>),
}

/// Why a record is unusable, as in [`ParseError`].
struct Problem {
    message: String,
    help: Option<&'static str>,
}

impl<T: Into<String>> From<T> for Problem {
    fn from(message: T) -> Self {
        Self { message: message.into(), help: None }
    }
}

/// What the conversion of all records shares.
struct Converter<'a> {
    config: &'a PreprocessConfig,
    data: &'a Path,
    tokenizer: TextTokenizer,
    leave_out: GlobSet,
    /// Folders that are searched for images, in this order.
    image_folders: Vec<PathBuf>,
    /// Rows of the language model's embedding, if its configuration is beside the tokenizer.
    rows: Option<usize>,
}

/// Converts the annotation file to records in the output folder.
pub(super) fn convert(config: &PreprocessConfig, job: &Job) -> Result<(), StageError> {
    let data = job.input("data")?;
    let path = data.join(&config.annotations);
    let named = job.named(&path);
    let mut cursor = Cursor::default();
    let folder = job.input("tokenizer")?;
    let mut tokenizer = TextTokenizer::open(folder, &job.named(folder))?;
    config.template.prepare(&mut tokenizer)?;
    let image_folders = job.inputs(IMAGES).map(Path::to_path_buf).chain([data.join(&config.image_folder)]).collect();
    let rows = embedding_rows(folder);
    check_rows(config.template, &tokenizer, rows, &job.named(folder))?;
    let mut sink = RecordSink::create(config, &job.output())?;
    sink.meta.tokenizer = Some(identity(&tokenizer));
    let leave_out =
        patterns(&config.leave_out).map_err(|message| StageError::failed(message, "correct `leave_out`"))?;
    let converter = Converter { config, data, tokenizer, leave_out, image_folders, rows };
    loop {
        job.check_cancelled()?;
        // A new mapping for each chunk, so that the memory in use does not grow with what has been read.
        let text = map_file(&path).map_err(|error| unreadable(data, &path, &named, error))?;
        let mut records = Records::new(&text, cursor);
        let chunk = records.by_ref().take(CHUNK).collect::<Result<Vec<_>, ParseError>>().map_err(|error| {
            let usual = "give a JSON array, or JSON lines, of records with `conversations`, as in LLaVA's files";
            StageError::input(&named, error.message, error.help.unwrap_or(usual)).at_line(error.line)
        })?;
        if chunk.is_empty() {
            break;
        }
        let known = &sink.image_numbers;
        let converted: Vec<_> = chunk.par_iter().map(|raw| converter.record(raw, known)).collect();
        for (raw, result) in chunk.iter().zip(converted) {
            match result {
                Ok(Made::Record(record)) => sink.add(record)?,
                Ok(Made::LeftOut(patterns)) => sink.left_out.add(patterns),
                Err(ParseError { line, message, help }) => {
                    let number = sink.number();
                    sink.rejects.add(Rejected { number, line, id: raw.id(), reason: short(&message), help });
                }
            }
        }
        if sink.rejects.len() > config.max_rejected + ENOUGH_REJECTED {
            break;
        }
        cursor = records.cursor();
        let figures = Progress::new(cursor.offset, text.len(), BYTES);
        job.progress(figures.with("records", sink.meta.records as f64));
    }
    sink.finish(job, &named)
}

impl Converter<'_> {
    fn record(&self, raw: &RawRecord<'_>, known: &Known) -> Result<Made, ParseError> {
        let annotation = raw.parse()?;
        let left_out: Vec<usize> = annotation.images.iter().flat_map(|image| self.leave_out.matches(image)).collect();
        if !left_out.is_empty() {
            return Ok(Made::LeftOut(left_out));
        }
        let checked = self.checked(annotation, known);
        checked.map(Made::Record).map_err(|Problem { message, help }| ParseError { line: raw.line, message, help })
    }

    fn checked(&self, annotation: Annotation, known: &Known) -> Result<Converted, Problem> {
        let Annotation { id, images, turns } = annotation;
        if turns.is_empty() {
            return Err("the conversation is empty".into());
        }
        let mut encoded =
            self.config.template.encode_with(&self.tokenizer, &turns, images.len(), self.config.max_length)?;
        let tokens = encoded.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        // Like the reference, accept one image without a token. Any other difference would shift images between records.
        if tokens != images.len() && !(tokens == 0 && images.len() == 1) {
            return Err(format!("the text has {tokens} `<image>` for {} image(s)", images.len()).into());
        }
        if let Some((id, rows)) = self.beyond(&encoded.input_ids) {
            return Err(format!(
                "it has token {id}, but the model has {rows} embeddings: the tokenizer is another model's"
            )
            .into());
        }
        // As in the reference, where the splice drops the label of an image, also of one in an answer.
        let images_in_answers = encoded.labels.iter_mut().filter(|label| **label == IMAGE_TOKEN);
        images_in_answers.for_each(|label| *label = IGNORE);
        let mentions_image = images.is_empty() && turns.iter().any(|turn| turn.value.contains(IMAGE_TEXT));
        let max_length = self.config.max_length;
        encoded.input_ids.truncate(max_length);
        encoded.labels.truncate(max_length);
        // The first token has nothing before it that could predict it.
        let learned = encoded.labels.iter().skip(1).any(|label| *label != IGNORE);
        let masked = (!learned).then(|| Reason::of(&turns, encoded.mismatched, encoded.whole, max_length));
        let images = images.iter().map(|image| self.image(image, known)).collect::<Result<_, _>>()?;
        let words = turns.iter().map(|turn| turn.value.split_whitespace().count()).sum();
        Ok(Converted { id, encoded, images, words, masked, mentions_image })
    }

    /// The first id without an embedding, and the number of embeddings.
    fn beyond(&self, ids: &[i32]) -> Option<(i32, usize)> {
        let rows = self.rows?;
        ids.iter().find(|id| usize::try_from(**id).is_ok_and(|id| id >= rows)).map(|id| (*id, rows))
    }

    /// Reads the file from the first folder that has it.
    fn read(&self, relative: &Path) -> std::io::Result<Vec<u8>> {
        let mut tried = self.image_folders.iter().map(|folder| std::fs::read(folder.join(relative)));
        let is_missing = |read: &std::io::Result<Vec<u8>>| {
            read.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
        };
        tried.find(|read| !is_missing(read)).unwrap_or_else(|| Err(ErrorKind::NotFound.into()))
    }

    /// Reads an image file and decodes it, to be sure that training can.
    fn image(&self, relative: &str, known: &Known) -> Result<(PathBuf, Option<Vec<u8>>), Problem> {
        if relative.starts_with("data:") || relative.len() > LONGEST_PATH {
            return Err(Problem {
                message: format!(
                    "`image` must be a path, but has {} characters: it may hold the image itself",
                    relative.len()
                ),
                help: Some("write the images to files, and their paths to `image`"),
            });
        }
        if relative.is_empty() || !stays_inside(relative) {
            return Err(format!("the image path `{relative}` leads out of the image folder").into());
        }
        let path = PathBuf::from(relative);
        if known.contains_key(&name_of(&path)) {
            return Ok((path, None));
        }
        let shown = Path::new(&self.config.image_folder).join(relative);
        let bytes = self.read(&path).map_err(|error| {
            let message = match (error.kind(), self.image_folders.len()) {
                (ErrorKind::NotFound, 1) => format!("the image {} is missing", shown.display()),
                (ErrorKind::NotFound, _) => {
                    format!(
                        "the image {relative} is in none of the folders of `{IMAGES}`, and {} is missing",
                        shown.display()
                    )
                }
                _ => format!("the image {} can't be read: {error}", shown.display()),
            };
            let folder = &self.config.image_folder;
            let repeated = !folder.is_empty() && path.starts_with(folder);
            let help = match error.kind() {
                _ if repeated => Some(REPEATED_FOLDER),
                ErrorKind::NotFound if self.data.join(&path).is_file() => Some(OUTSIDE_FOLDER),
                ErrorKind::NotFound => Some(MISSING),
                _ => None,
            };
            Problem { message, help }
        })?;
        pixels::decode(&bytes).map_err(|error| format!("the image {} can't be decoded: {error}", shown.display()))?;
        Ok((path, Some(bytes)))
    }
}
