//! The image splice: image tokens are replaced by projected image features. Reference: Imp's
//! `prepare_inputs_labels_for_multimodal`. Sequences are packed one after the other without padding;
//! [`Spliced::padded`] converts to the reference's padded batches.

use crate::{
    imp::Imp,
    layers::Pass,
    sample::{IMAGE_TOKEN, Sample, Spliced},
    tensor::{self, IGNORE, Mat, Segments, Weight},
};

impl Imp {
    /// Embeds the tokens of `samples` and replaces each image token by the image's projected features. `features` are of
    /// [`Imp::encode_images`]; the blocks of the encoder that train and the projector run here, so that gradients reach them.
    /// Sequences are truncated to the context length after the splice.
    pub fn splice(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat) -> Spliced {
        const TEXT: usize = 0;
        const IMAGE: usize = 1;
        let patches = self.vision.config.patches();
        // An identity leaves features where they are.
        let features = self.vision.finish(pass, features);
        let projected = self.projector.forward(pass, &features).to(&self.llm.embedding().place()); // [images * patches, hidden]
        let (mut picks, mut labels, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            let start = picks.len();
            let mut images = sample.images.iter();
            for (position, id) in sample.input_ids.iter().enumerate() {
                if *id == IMAGE_TOKEN {
                    if let Some(image) = images.next() {
                        picks.extend((0..patches).map(|patch| (IMAGE, image * patches + patch)));
                        labels.extend(std::iter::repeat_n(IGNORE, patches));
                    }
                } else {
                    picks.push((TEXT, *id as usize));
                    labels.push(sample.labels.get(position).copied().unwrap_or(IGNORE));
                }
            }
            let length = (picks.len() - start).min(self.config.tokenizer_model_max_length);
            picks.truncate(start + length);
            labels.truncate(start + length);
            lengths.push(length);
        }
        let is_token: Vec<bool> = picks.iter().map(|(source, _)| *source == TEXT).collect();
        let embedded = tensor::gather(&pass.graph, &[self.llm.embedding(), &Weight::Dense(projected)], picks);
        let segments = Segments::new(lengths);
        Spliced { embedded: pass.noisy(embedded, &segments, &is_token), segments, labels }
    }

    /// Describes what makes `sample` invalid for this model, if anything: token ids outside the vocabulary, or more
    /// image tokens than images. All other functions expect valid samples.
    pub fn fault(&self, sample: &Sample<'_>) -> Option<String> {
        let vocabulary = self.llm.config.vocab_size;
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        let token = sample.input_ids.iter().find(|id| **id != IMAGE_TOKEN && !known(id));
        let label = sample.labels.iter().find(|id| **id != IGNORE && !known(id));
        if let Some(id) = token.or(label) {
            return Some(format!("it has the token id {id}, but the model's vocabulary has {vocabulary} tokens"));
        }
        let (wanted, given) = (sample.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), sample.images.len());
        (wanted > given).then(|| format!("it has {wanted} image tokens, but {given} images"))
    }

    /// Number of labelled positions of `sample` after splice and truncation. The loss of a batch is divided by their
    /// sum.
    pub fn labelled(&self, sample: &Sample<'_>) -> usize {
        let (patches, limit) = (self.vision.config.patches(), self.config.tokenizer_model_max_length);
        let (mut position, mut count) = (0, 0);
        for (id, label) in sample.input_ids.iter().zip(sample.labels) {
            let labelled = *id != IMAGE_TOKEN && *label != IGNORE;
            // Position 0 has no preceding position that could predict it.
            count += usize::from(labelled && position > 0 && position < limit);
            position += if *id == IMAGE_TOKEN { patches } else { 1 };
        }
        count
    }
}
