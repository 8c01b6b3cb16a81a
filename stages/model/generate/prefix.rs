//! Prefill of prompts, in which a common prefix of adjacent prompts, such as the image of several questions, is
//! computed once. Independent of how answers are generated.

use std::ops::Range;

use crate::{
    imp::Imp,
    language::Cache,
    layers::Pass,
    sample::{IMAGE_TOKEN, Sample},
    tensor::{self, Mat, Segments},
};

/// The state after prefill.
pub(super) struct Prefilled {
    /// The hidden states at the last position of each prompt that is not empty: `[prompts, hidden]`.
    pub(super) hidden: Mat,
    pub(super) cache: Cache,
    /// Number of positions of each prompt in the cache, including empty ones, and later of its answer.
    pub(super) lengths: Vec<usize>,
}

/// Adjacent prompts with a common prefix.
struct Group {
    prompts: Range<usize>,
    /// Number of ids in the common prefix, which leaves at least one id of each prompt.
    ids: usize,
}

impl Imp {
    /// Computes the KV cache of the prompts.
    pub(super) fn prefill(&self, prompts: &[Sample<'_>], features: &Mat) -> Prefilled {
        let groups = groups(prompts);
        let fits = prompts.iter().all(|prompt| self.positions(prompt) <= self.config.tokenizer_model_max_length);
        if fits && groups.len() < prompts.len() {
            self.prefill_shared(prompts, &groups, features)
        } else {
            self.prefill_separately(prompts, features)
        }
    }

    fn prefill_separately(&self, prompts: &[Sample<'_>], features: &Mat) -> Prefilled {
        let pass = Pass::inference();
        let spliced = self.splice(&pass, prompts, features);
        let (hidden, cache) = self.llm.prefill(&spliced.embedded, &spliced.segments, &last_rows(&spliced.segments));
        Prefilled { hidden, cache, lengths: lengths(&spliced.segments) }
    }

    fn prefill_shared(&self, prompts: &[Sample<'_>], groups: &[Group], features: &Mat) -> Prefilled {
        let pass = Pass::inference();
        let firsts: Vec<Sample<'_>> =
            groups.iter().map(|group| split(&prompts[group.prompts.start], group.ids).0).collect();
        let shared = self.splice(&pass, &firsts, features);
        let (_, cache) = self.llm.prefill(&shared.embedded, &shared.segments, &[]);
        let of_group = |layer: Vec<_>| -> Vec<_> {
            let prefixes = layer.into_iter().map(tensor::KvCache::into_shared);
            groups.iter().zip(prefixes).flat_map(|(group, one)| vec![one; group.prompts.len()]).collect()
        };
        let mut cache: Cache = cache.into_iter().map(of_group).collect();

        let rests: Vec<Sample<'_>> = groups
            .iter()
            .flat_map(|group| prompts[group.prompts.clone()].iter().map(|prompt| split(prompt, group.ids).1))
            .collect();
        // Images are usually in the common prefix; then projecting them a second time is unnecessary.
        let no_images = Mat::zeros(0, features.cols());
        let with_image = rests.iter().any(|rest| image_tokens(rest.input_ids) > 0);
        let rest = self.splice(&pass, &rests, if with_image { features } else { &no_images });
        let shared_length =
            groups.iter().zip(shared.segments.iter()).flat_map(|(group, range)| vec![range.len(); group.prompts.len()]);
        let shared_length: Vec<usize> = shared_length.collect();
        let (mut positions, mut which) = (Vec::new(), Vec::new());
        for (prompt, (shared_length, range)) in shared_length.iter().zip(rest.segments.iter()).enumerate() {
            positions.extend(*shared_length..shared_length + range.len());
            which.extend(std::iter::repeat_n(prompt, range.len()));
        }
        let last = last_rows(&rest.segments);
        let hidden = self.llm.decode(&rest.embedded, &positions, &which, &mut cache, Some(&last));
        let lengths = shared_length
            .iter()
            .zip(lengths(&rest.segments))
            .map(|(shared_length, rest)| shared_length + rest)
            .collect();
        Prefilled { hidden, cache, lengths }
    }

    /// Number of positions of a prompt after the splice.
    fn positions(&self, prompt: &Sample<'_>) -> usize {
        let tokens = image_tokens(prompt.input_ids);
        prompt.input_ids.len() - tokens + tokens.min(prompt.images.len()) * self.vision.config.patches()
    }
}

fn lengths(segments: &Segments) -> Vec<usize> {
    segments.iter().map(|range| range.len()).collect()
}

/// The last row of each sequence that is not empty.
fn last_rows(segments: &Segments) -> Vec<usize> {
    segments.iter().filter(|range| !range.is_empty()).map(|range| range.end - 1).collect()
}

fn image_tokens(ids: &[i32]) -> usize {
    ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
}

/// Splits a prompt, with its images, after `ids` ids.
fn split<'a>(prompt: &Sample<'a>, ids: usize) -> (Sample<'a>, Sample<'a>) {
    let (first, rest) = prompt.input_ids.split_at(ids);
    let (own, others) = prompt.images.split_at(image_tokens(first).min(prompt.images.len()));
    let sample = |input_ids, images| Sample { input_ids, labels: &[], images };
    (sample(first, own), sample(rest, others))
}

/// Length in ids of the common prefix of two prompts, with the same images; leaves at least one id of each.
fn common_prefix(one: &Sample<'_>, other: &Sample<'_>) -> usize {
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

/// Groups adjacent prompts whose common prefix contains an image or, if they have no images, is at least half of each.
fn groups(prompts: &[Sample<'_>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        if let Some(group) = groups.last_mut() {
            let first = &prompts[group.prompts.start];
            let ids = common_prefix(first, prompt).min(group.ids);
            let images = image_tokens(first.input_ids) + image_tokens(prompt.input_ids);
            let longest = prompt.input_ids.len().max(group.ids);
            if image_tokens(&prompt.input_ids[..ids]) > 0 || (images == 0 && ids > 0 && 2 * ids >= longest) {
                *group = Group { prompts: group.prompts.start..index + 1, ids };
                continue;
            }
        }
        groups.push(Group { prompts: index..index + 1, ids: prompt.input_ids.len().saturating_sub(1) });
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
    fn adjacent_prompts_with_the_same_image_are_a_group() {
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
        // The fourth prompt ends with its image token, and a common prefix must leave at least one id.
        assert_eq!(groups, [(0..2, 4), (2..3, 4), (3..4, 2), (4..5, 0), (5..7, 2), (7..8, 4)]);
    }
}
