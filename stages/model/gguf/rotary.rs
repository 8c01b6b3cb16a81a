//! Scaled rotary position embeddings in GGUF files: as keys, or as divisors of the frequencies in tensors. Sources: llama.cpp's
//! `convert_hf_to_gguf.py` for what is written, its `llama-model.cpp` for what each architecture reads.

use super::{
    names,
    reader::{Gguf, Tensor},
    setting::Setting,
};
use crate::{
    config::LanguageConfig,
    error::{ModelError, Result},
    family::Family,
    rope::RopeScaling,
};

/// Divisors in all sequences.
const ALL: &str = "rope_freqs.weight";
/// Divisors in sequences that are longer than those of the first training, and in others.
const LONG: &str = "rope_factors_long.weight";
const SHORT: &str = "rope_factors_short.weight";

/// The published scalings of Llama 3.1 and 3.2: factors, and what they have in common.
const LLAMA3: [f64; 2] = [8.0, 32.0];
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: usize = 8192;
/// By how much divisors may differ that were computed in f32 by different programs, as a share.
const ROUNDING: f32 = 1e-4;

/// Whether a tensor has divisors, and no weights.
pub(super) fn has_divisors(tensor: &Tensor) -> bool {
    [ALL, LONG, SHORT].contains(&tensor.name.as_str())
}

/// Why llama.cpp has no place for a model's scaling, if so.
pub(super) fn unfit(config: &LanguageConfig) -> Option<String> {
    let scaling = config.rope_scaling.as_ref()?;
    let is_written = match scaling {
        // Within the model's positions, `dynamic` changes nothing; an Imp reads no further.
        RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => true,
        RopeScaling::Llama3 { .. } => config.family == Family::Llama,
        RopeScaling::LongRope { .. } => config.family == Family::Phi3 || in_all_sequences(config).is_some(),
        RopeScaling::Yarn { .. } => false,
    };
    let (name, architecture) = (scaling.name(), names::architecture(config.family));
    (!is_written).then(|| {
        format!("`rope_scaling` of type `{name}` is not written for llama.cpp's architecture `{architecture}`")
    })
}

/// The keys for a model's scaling.
pub(super) fn settings(config: &LanguageConfig) -> Vec<(String, Setting)> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", names::architecture(config.family));
    match &config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => {
            vec![(key("type"), Setting::Text("linear")), (key("factor"), Setting::Float(*factor))]
        }
        Some(RopeScaling::LongRope { magnitude, .. }) if config.family == Family::Phi3 => {
            vec![(key("attn_factor"), Setting::Float(*magnitude))]
        }
        _ => Vec::new(),
    }
}

/// The tensors for a model's scaling.
pub(super) fn tensors(config: &LanguageConfig) -> Vec<(&'static str, Vec<f32>)> {
    match &config.rope_scaling {
        Some(RopeScaling::LongRope { short, long, .. }) if config.family == Family::Phi3 => {
            vec![(LONG, long.clone()), (SHORT, short.clone())]
        }
        _ => in_all_sequences(config).into_iter().map(|divisors| (ALL, divisors)).collect(),
    }
}

/// The divisors of a Llama, if they are the same in all sequences.
fn in_all_sequences(config: &LanguageConfig) -> Option<Vec<f32>> {
    match config.rope_scaling.as_ref().filter(|_| config.family == Family::Llama)? {
        RopeScaling::Llama3 { .. } => Some(divisors(config)),
        RopeScaling::LongRope { short, long, magnitude, .. } => {
            (short == long && (*magnitude - 1.0).abs() < 1e-6).then(|| short.clone())
        }
        _ => None,
    }
}

/// What each frequency of a short sequence is divided by.
fn divisors(config: &LanguageConfig) -> Vec<f32> {
    let plain = LanguageConfig { rope_scaling: None, ..config.clone() };
    let (plain, scaled) = (plain.rope_frequencies(1), config.rope_frequencies(1));
    plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect()
}

/// The scaling that the file of a Llama with this configuration names.
///
/// # Errors
/// If it is not supported.
pub(super) fn read(gguf: &Gguf, config: &LanguageConfig) -> Result<Option<RopeScaling>> {
    let is_linear = gguf.optional("llama.rope.scaling.type", Gguf::text)?.is_some_and(|kind| kind == "linear");
    let factor = gguf.optional("llama.rope.scaling.factor", Gguf::float)?.filter(|_| is_linear);
    // As in llama.cpp, 0 is no factor.
    let linear = match factor.filter(|factor| ![0.0, 1.0].contains(factor)) {
        Some(factor) if !(factor.is_finite() && factor > 0.0) => {
            return Err(ModelError::file(&gguf.path, format!("`llama.rope.scaling.factor` = {factor} is no factor")));
        }
        factor => factor.map(|factor| RopeScaling::Linear { factor }),
    };
    let Some(tensor) = gguf.tensors.iter().find(|tensor| has_divisors(tensor)) else { return Ok(linear) };
    if tensor.name != ALL || linear.is_some() {
        let message = format!("the tensor `{}` with rotary divisors is not supported here", tensor.name);
        return Err(ModelError::file(&gguf.path, message));
    }
    let found = values(gguf, tensor, config)?;
    if found.iter().all(|divisor| (divisor - 1.0).abs() <= ROUNDING) {
        return Ok(None);
    }
    let published = LLAMA3.map(|factor| RopeScaling::Llama3 { factor, low: LOW, high: HIGH, original: ORIGINAL });
    let is_this = |scaling: &RopeScaling| {
        are_near(&divisors(&LanguageConfig { rope_scaling: Some(scaling.clone()), ..config.clone() }), &found)
    };
    // Any others are those of a `longrope` that does not look at the length.
    let given = || RopeScaling::LongRope {
        short: found.clone(),
        long: found.clone(),
        magnitude: 1.0,
        original: config.max_position_embeddings,
    };
    Ok(Some(published.into_iter().find(is_this).unwrap_or_else(given)))
}

/// Checks that the file has the divisors of the model's configuration, and no others.
///
/// # Errors
/// Names the tensor that is missing, or has others.
pub(super) fn check(gguf: &Gguf, config: &LanguageConfig) -> Result<()> {
    let expected = tensors(config);
    let wrong = |name: &str| {
        let message = format!("`{name}` is not what config.json's `rope_scaling` says: the two are not of one model");
        Err(ModelError::file(&gguf.path, message))
    };
    for (name, divisors) in &expected {
        let Some(tensor) = gguf.tensors.iter().find(|tensor| tensor.name == *name) else { return wrong(name) };
        if !are_near(&values(gguf, tensor, config)?, divisors) {
            return wrong(name);
        }
    }
    let is_expected = |tensor: &Tensor| expected.iter().any(|(name, _)| tensor.name == *name);
    match gguf.tensors.iter().find(|tensor| has_divisors(tensor) && !is_expected(tensor)) {
        Some(tensor) => wrong(&tensor.name),
        None => Ok(()),
    }
}

fn are_near(ours: &[f32], theirs: &[f32]) -> bool {
    ours.len() == theirs.len()
        && ours.iter().zip(theirs).all(|(ours, theirs)| (ours - theirs).abs() <= ROUNDING * ours.abs())
}

/// The divisors in a tensor: positive numbers, one for each pair of rotated dimensions.
fn values(gguf: &Gguf, tensor: &Tensor, config: &LanguageConfig) -> Result<Vec<f32>> {
    let is_right = tensor.shape.iter().product::<usize>() == config.rotary_dims / 2;
    let mut values = vec![0.0; if is_right { config.rotary_dims / 2 } else { 0 }];
    if is_right {
        tensor.encoding.widen(gguf.bytes(tensor), &mut values);
    }
    if !is_right || !values.iter().all(|divisor| divisor.is_finite() && *divisor > 0.0) {
        let message = format!("`{}` does not have a positive divisor for each rotary frequency", tensor.name);
        return Err(ModelError::file(&gguf.path, message));
    }
    Ok(values)
}
