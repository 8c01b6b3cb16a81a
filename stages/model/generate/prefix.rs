//! Prompts that begin alike, as questions about one image do: the language model reads what they share once.
//! Independent of how answers are made.

use std::ops::Range;

use crate::{
    imp::Imp,
    language::Cache,
    layers::Pass,
    splice::{IMAGE_TOKEN, Sample},
    tensor::{self, Mat, Segments},
};

/// The state after reading the prompts.
pub(super) struct Beginning {
    /// The hidden state at the last position of each prompt that is not empty: `[prompts, hidden]`.
    pub(super) hidden: Mat,
    pub(super) cache: Cache,
    /// The positions of each prompt, empty ones included.
    pub(super) lengths: Vec<usize>,
}

/// Neighbours that begin alike.
struct Group {
    prompts: Range<usize>,
    /// Ids that all of them begin with; at least one more follows.
    ids: usize,
}

impl Imp {
    /// Reads the prompts.
    pub(super) fn begin(&self, prompts: &[Sample<'_>], features: &Mat) -> Beginning {
        let groups = groups(prompts);
        let fits = prompts.iter().all(|prompt| self.positions(prompt) <= self.config.tokenizer_model_max_length);
        if fits && groups.len() < prompts.len() {
            self.begin_together(prompts, &groups, features)
        } else {
            self.begin_apart(prompts, features)
        }
    }

    fn begin_apart(&self, prompts: &[Sample<'_>], features: &Mat) -> Beginning {
        let pass = Pass::inference();
        let spliced = self.splice(&pass, prompts, features);
        let (hidden, cache) = self.llm.prefill(&spliced.embedded, &spliced.segments);
        Beginning { hidden: last_rows(&pass, &hidden, &spliced.segments), cache, lengths: lengths(&spliced.segments) }
    }

    fn begin_together(&self, prompts: &[Sample<'_>], groups: &[Group], features: &Mat) -> Beginning {
        let pass = Pass::inference();
        let firsts: Vec<Sample<'_>> =
            groups.iter().map(|group| cut(&prompts[group.prompts.start], group.ids).0).collect();
        let shared = self.splice(&pass, &firsts, features);
        let (_, cache) = self.llm.prefill(&shared.embedded, &shared.segments);
        let of_group = |layer: Vec<_>| -> Vec<_> {
            let beginnings = layer.into_iter().map(tensor::KvCache::into_shared);
            groups.iter().zip(beginnings).flat_map(|(group, one)| vec![one; group.prompts.len()]).collect()
        };
        let mut cache: Cache = cache.into_iter().map(of_group).collect();

        let rests: Vec<Sample<'_>> = groups
            .iter()
            .flat_map(|group| prompts[group.prompts.clone()].iter().map(|prompt| cut(prompt, group.ids).1))
            .collect();
        // Images are mostly in the shared beginning: then they need not be projected again.
        let no_images = Mat::zeros(0, features.cols());
        let with_image = rests.iter().any(|rest| image_tokens(rest.input_ids) > 0);
        let rest = self.splice(&pass, &rests, if with_image { features } else { &no_images });
        let begun =
            groups.iter().zip(shared.segments.iter()).flat_map(|(group, range)| vec![range.len(); group.prompts.len()]);
        let begun: Vec<usize> = begun.collect();
        let (mut positions, mut which) = (Vec::new(), Vec::new());
        for (prompt, (begun, range)) in begun.iter().zip(rest.segments.iter()).enumerate() {
            positions.extend(*begun..begun + range.len());
            which.extend(std::iter::repeat_n(prompt, range.len()));
        }
        let hidden = self.llm.decode(&rest.embedded, &positions, &which, &mut cache);
        let lengths = begun.iter().zip(lengths(&rest.segments)).map(|(begun, rest)| begun + rest).collect();
        Beginning { hidden: last_rows(&pass, &hidden, &rest.segments), cache, lengths }
    }

    /// Number of positions of a prompt.
    fn positions(&self, prompt: &Sample<'_>) -> usize {
        let tokens = image_tokens(prompt.input_ids);
        prompt.input_ids.len() - tokens + tokens.min(prompt.images.len()) * self.vision.config.patches()
    }
}

fn lengths(segments: &Segments) -> Vec<usize> {
    segments.iter().map(|range| range.len()).collect()
}

/// An empty prompt has no last row.
fn last_rows(pass: &Pass, hidden: &Mat, segments: &Segments) -> Mat {
    let last = segments.iter().filter(|range| !range.is_empty()).map(|range| range.end - 1);
    tensor::pick_rows(&pass.graph, hidden, last)
}

fn image_tokens(ids: &[i32]) -> usize {
    ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
}

/// The first `ids` ids of a prompt with their images, and the rest.
fn cut<'a>(prompt: &Sample<'a>, ids: usize) -> (Sample<'a>, Sample<'a>) {
    let (first, rest) = prompt.input_ids.split_at(ids);
    let (own, others) = prompt.images.split_at(image_tokens(first).min(prompt.images.len()));
    let sample = |input_ids, images| Sample { input_ids, labels: &[], images };
    (sample(first, own), sample(rest, others))
}

/// Number of ids at the beginning that stand for the same in both prompts, leaving at least one of each.
fn alike(one: &Sample<'_>, other: &Sample<'_>) -> usize {
    let most = one.input_ids.len().min(other.input_ids.len()).saturating_sub(1);
    let mut image = 0;
    let same = |(a, b): &(&i32, &i32)| {
        if **a == IMAGE_TOKEN && a == b {
            image += 1;
            return one.images.get(image - 1) == other.images.get(image - 1);
        }
        a == b
    };
    one.input_ids.iter().zip(other.input_ids).take(most).take_while(same).count()
}

/// Neighbours whose common beginning has an image, or without images is at least half of each.
fn groups(prompts: &[Sample<'_>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        if let Some(group) = groups.last_mut() {
            let first = &prompts[group.prompts.start];
            let ids = alike(first, prompt).min(group.ids);
            let images = image_tokens(first.input_ids) + image_tokens(prompt.input_ids);
            let longest = prompt.input_ids.len().max(group.ids);
            if image_tokens(&prompt.input_ids[..ids]) > 0 || (images == 0 && ids > 0 && 2 * ids >= longest) {
                *group = Group { prompts: group.prompts.start..number + 1, ids };
                continue;
            }
        }
        groups.push(Group { prompts: number..number + 1, ids: prompt.input_ids.len().saturating_sub(1) });
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample<'a>(ids: &'a [i32], images: &'a [usize]) -> Sample<'a> {
        Sample { input_ids: ids, labels: &[], images }
    }

    #[test]
    fn neighbours_with_one_image_are_a_group() {
        let prompts = [
            sample(&[1, 2, IMAGE_TOKEN, 3, 4], &[0]),
            sample(&[1, 2, IMAGE_TOKEN, 3, 5, 6], &[0]),
            sample(&[1, 2, IMAGE_TOKEN, 3, 4], &[1]),
            sample(&[1, 2, IMAGE_TOKEN], &[1]),
            sample(&[], &[]),
            sample(&[7, 8, 9], &[]),
            sample(&[7, 8, 1], &[]),
            sample(&[7, 1, 1, 1, 1], &[]),
        ];
        let groups: Vec<_> = groups(&prompts).into_iter().map(|group| (group.prompts, group.ids)).collect();
        // The image token is the last id of the fourth prompt, and at least one id must follow what is shared.
        assert_eq!(groups, [(0..2, 4), (2..3, 4), (3..4, 2), (4..5, 0), (5..7, 2), (7..8, 4)]);
    }
}
