//! The whole model: images are encoded, projected and spliced into the token embeddings, and the language model
//! reads the result. Reference: Imp's `prepare_inputs_labels_for_multimodal`.

use std::path::Path;

use crate::{
    config::{ConfigFile, ImpConfig},
    error::{ModelError, Result},
    language::Phi,
    layers::Pass,
    peft,
    projector::Projector,
    save::VISION_PREFIX,
    tensor::{self, IGNORE, Mat, Segments},
    vision::Siglip,
    weights::Checkpoint,
};

/// Logits that are in memory at a time in training: 64 MB.
const LOGITS: usize = 1 << 24;

/// The id that stands for an image in a sequence of tokens.
pub const IMAGE_TOKEN: i32 = -200;

/// An Imp.
pub struct Imp {
    /// What joins the parts.
    pub config: ImpConfig,
    /// The language model.
    pub llm: Phi,
    /// The vision encoder.
    pub vision: Siglip,
    /// From one to the other.
    pub projector: Projector,
}

/// A sequence of tokens with its images.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Token ids; [`IMAGE_TOKEN`] stands for an image.
    pub input_ids: &'a [i32],
    /// What is to be said at each position, or [`IGNORE`]. Empty for inference.
    pub labels: &'a [i32],
    /// Which of the batch's encoded images each [`IMAGE_TOKEN`] stands for, in order.
    pub images: &'a [usize],
}

/// Sequences with their images in place.
pub struct Spliced {
    /// `[rows, hidden]`.
    pub embedded: Mat,
    /// The sequences in its rows.
    pub segments: Segments,
    /// For each row what is to be said there, or [`IGNORE`].
    pub labels: Vec<i32>,
}

impl Imp {
    /// Loads a model folder: a merged Imp (also quantized), or the split layout that training stages write
    /// (`llm/`, `vision/`, `mm_projector.safetensors`, and `adapter/` if there is one).
    pub fn load(folder: &Path) -> Result<Self> {
        let file = ConfigFile::read(folder)?;
        let config = file.imp()?;
        match file.model_type() {
            "imp-split" => Self::load_split(folder, config),
            "imp" => {
                let checkpoint = Checkpoint::open(folder)?;
                let llm = Phi::load(&checkpoint, file.phi()?)?;
                let vision = Siglip::load(&checkpoint, VISION_PREFIX, file.siglip()?, config.mm_vision_select_layer)?;
                let (from, to) = (vision.config.hidden_size, llm.config.hidden_size);
                let projector =
                    Projector::load(&checkpoint, "model.mm_projector.", &config.mm_projector_type, from, to)?;
                Ok(Self { config, llm, vision, projector })
            }
            other => Err(ModelError::file(
                &folder.join("config.json"),
                format!("model_type `{other}` is no Imp: `imp` and `imp-split` are read"),
            )),
        }
    }

    fn load_split(folder: &Path, config: ImpConfig) -> Result<Self> {
        let (llm, vision) = Self::load_towers(&folder.join("llm"), &folder.join("vision"), &config)?;
        let checkpoint = Checkpoint::open_file(&folder.join("mm_projector.safetensors"))?;
        let (from, to) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::load(&checkpoint, "model.mm_projector.", &config.mm_projector_type, from, to)?;
        let mut model = Self { config, llm, vision, projector };
        let adapter = folder.join("adapter");
        if adapter.is_dir() {
            peft::read(&mut model, &adapter)?;
        }
        Ok(model)
    }

    /// Starts from a language model and a vision encoder, each a Hugging Face folder, with a fresh projector.
    pub fn assemble(llm: &Path, vision: &Path, config: ImpConfig, seed: u64) -> Result<Self> {
        let (llm, vision) = Self::load_towers(llm, vision, &config)?;
        let projector =
            Projector::fresh(&config.mm_projector_type, vision.config.hidden_size, llm.config.hidden_size, seed)?;
        Ok(Self { config, llm, vision, projector })
    }

    fn load_towers(llm: &Path, vision: &Path, config: &ImpConfig) -> Result<(Phi, Siglip)> {
        let file = ConfigFile::read(llm)?;
        if !matches!(file.model_type(), "phi" | "phi-msft" | "") {
            let message = format!("model_type `{}` is not supported yet: phi is", file.model_type());
            return Err(ModelError::file(&llm.join("config.json"), message));
        }
        let llm = Phi::load(&Checkpoint::open(llm)?, file.phi()?)?;
        let siglip = ConfigFile::read(vision)?.siglip()?;
        let vision = Siglip::load(&Checkpoint::open(vision)?, "vision_model.", siglip, config.mm_vision_select_layer)?;
        Ok((llm, vision))
    }

    /// Features `[images * patches, vision hidden]` of images `[3, size, size]` with values in -1..1.
    pub fn encode_images(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        self.vision.encode(images)
    }

    /// Puts the features of images in the place of their tokens. Features are projected here, so that the
    /// projector is trained. What is beyond the context is cut off after the splice.
    pub fn splice(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat) -> Spliced {
        const TEXT: usize = 0;
        const IMAGE: usize = 1;
        let patches = self.vision.config.patches();
        let projected = self.projector.forward(pass, features); // [images * patches, hidden]
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
        let embedded = tensor::gather(&pass.graph, &[&self.llm.embedding, &projected], picks);
        Spliced { embedded, segments: Segments::new(lengths), labels }
    }

    /// What makes a sample unusable for this model, if anything does: ids that it does not know, or image tokens
    /// without images. Other functions take samples without such faults.
    pub fn fault(&self, sample: &Sample<'_>) -> Option<String> {
        let vocabulary = self.llm.config.vocab_size;
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        let tokens = sample.input_ids.iter().find(|id| **id != IMAGE_TOKEN && !known(id));
        let labels = sample.labels.iter().find(|id| **id != IGNORE && !known(id));
        if let Some(id) = tokens.or(labels) {
            return Some(format!("it has the token {id}, but the model knows {vocabulary}"));
        }
        let (wanted, given) = (sample.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), sample.images.len());
        (wanted > given).then(|| format!("it has {wanted} image tokens, but {given} images"))
    }

    /// How many positions of `samples` are learned, after splice and truncation: the divisor of the loss.
    pub fn labelled(&self, sample: &Sample<'_>) -> usize {
        let (patches, limit) = (self.vision.config.patches(), self.config.tokenizer_model_max_length);
        let (mut position, mut count) = (0, 0);
        for (id, label) in sample.input_ids.iter().zip(sample.labels) {
            let learned = *id != IMAGE_TOKEN && *label != IGNORE;
            // The first position has nothing before it that could predict it.
            count += usize::from(learned && position > 0 && position < limit);
            position += if *id == IMAGE_TOKEN { patches } else { 1 };
        }
        count
    }

    /// The sum of the cross-entropies of all labelled positions, each predicted from the one before it, divided
    /// by `count`: `[1, 1]`. For a whole batch `count` is [`Imp::labelled`] summed up; for a part of a batch
    /// the whole batch's, so that the parts' losses and gradients add up to the batch's.
    pub fn loss(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat, count: usize) -> Mat {
        let spliced = self.splice(pass, samples, features);
        let places: Vec<(usize, usize)> = spliced.segments.places().collect();
        let hidden = self.llm.forward(&pass.on_rows(places.iter().copied()), &spliced.embedded, &spliced.segments);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for range in spliced.segments.iter() {
            for row in range.start + 1..range.end {
                if spliced.labels[row] != IGNORE {
                    rows.push((0, row - 1));
                    targets.push(spliced.labels[row] as u32);
                }
            }
        }
        let places: Vec<(usize, usize)> = rows.iter().map(|(_, row)| places[*row]).collect();
        // Logits only where something is learned: of a long conversation that is a small part.
        let learned = tensor::gather(&pass.graph, &[&hidden], rows);
        let at_once = (LOGITS / self.llm.config.vocab_size).max(1);
        tensor::sum_over_parts(&pass.graph, &learned, at_once, &self.llm.head_parameters(), |graph, part, hidden| {
            let pass = pass.recorded_by(graph).on_rows(places[part.clone()].iter().copied());
            let logits = self.llm.logits(&pass, hidden); // [part, vocab]
            tensor::cross_entropy(graph, &logits, targets[part].to_vec(), count)
        })
    }
}
