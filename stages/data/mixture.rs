//! Several record sets as one: training's view of its data. Independent of files, batches and models.

use super::records::{Record, RecordSet};
use crate::{StageError, image::pixels::AspectRatio, text::template::Template};

/// Record sets in sequence. Records and images are numbered across sets.
#[derive(Debug)]
pub struct Mixture {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    set: RecordSet,
    weight: f64,
    first_record: usize,
    first_image: u32,
}

impl Mixture {
    /// Joins at least one set. The default weight is 1.
    ///
    /// # Errors
    /// If the sets differ in how images become square.
    pub fn new(sets: Vec<RecordSet>, weights: &[f64]) -> Result<Self, StageError> {
        let (mut parts, mut first_record, mut first_image) = (Vec::<Part>::new(), 0, 0_u32);
        for (number, set) in sets.into_iter().enumerate() {
            let ratio = &set.meta().image_aspect_ratio;
            if let Some(first) = parts.first().map(|part| &part.set.meta().image_aspect_ratio)
                && first != ratio
            {
                return Err(StageError::failed(
                    format!("data[0] has `image_aspect_ratio = \"{first}\"` and data[{number}] `\"{ratio}\"`"),
                    "give all preprocess stages of `data` the same `image_aspect_ratio`",
                ));
            }
            let (records, images) = (set.len(), set.meta().images as u32);
            parts.push(Part { set, weight: weights.get(number).copied().unwrap_or(1.0), first_record, first_image });
            first_record += records;
            first_image += images;
        }
        Ok(Self { parts })
    }

    /// How images become square.
    pub fn aspect_ratio(&self) -> AspectRatio {
        let name = self.parts.first().map(|part| part.set.meta().image_aspect_ratio.as_str());
        name.and_then(AspectRatio::by_name).unwrap_or_default()
    }

    /// The template of the conversations, by its name; `None` if there are only captions (`plain`).
    ///
    /// # Errors
    /// If there are conversations in several.
    pub fn conversation_template(&self) -> Result<Option<String>, StageError> {
        let templates = self.sets().map(|set| set.meta().template.as_str()).enumerate();
        let mut talks = templates.filter(|(_, template)| *template != Template::Plain.name());
        let Some((first, template)) = talks.next() else { return Ok(None) };
        match talks.find(|(_, other)| *other != template) {
            None => Ok(Some(template.into())),
            Some((number, other)) => Err(StageError::failed(
                format!(
                    "data[{first}] has the template `{template}` and data[{number}] `{other}`: the model would answer to both, and be asked in one"
                ),
                "give all preprocess stages of `data` the same `template` (captions may have `plain`)",
            )),
        }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.parts.last().map_or(0, |last| last.first_record + last.set.len())
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of different images.
    pub fn images(&self) -> usize {
        self.parts.last().map_or(0, |last| last.first_image as usize + last.set.meta().images)
    }

    /// The sets.
    pub fn sets(&self) -> impl Iterator<Item = &RecordSet> {
        self.parts.iter().map(|part| &part.set)
    }

    /// The record numbers of each set, and how many times an epoch sees them.
    pub fn weighted(&self) -> impl Iterator<Item = (std::ops::Range<usize>, f64)> {
        self.parts.iter().map(|part| (part.first_record..part.first_record + part.set.len(), part.weight))
    }

    /// Record `number`, from 0.
    ///
    /// # Errors
    /// If there are fewer, or the files are damaged.
    pub fn record(&self, number: usize) -> Result<Record<'_>, StageError> {
        let part = self.parts.partition_point(|part| part.first_record <= number).saturating_sub(1);
        let part = self.parts.get(part).ok_or_else(|| StageError::failed("there are no records", "give `data`"))?;
        Ok(part.set.record(number - part.first_record)?.numbered_from(part.first_image))
    }

    /// The number of tokens (an image counting as one) and of images of each record.
    pub fn shapes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.sets().flat_map(RecordSet::shapes)
    }

    /// See [`RecordSet::modality_lengths`].
    pub fn modality_lengths(&self) -> impl Iterator<Item = i64> {
        self.sets().flat_map(RecordSet::modality_lengths)
    }
}
