//! `rope_scaling` of a `config.json`, which newer files have among their `rope_parameters`, both ways. Fields: transformers'
//! `modeling_rope_utils.py`.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use crate::{error::Result, family::Family, rope::RopeScaling};

/// What may stand in the table of any type.
const COMMON: [&str; 5] = ["type", "rope_type", "rope_theta", "partial_rotary_factor", ORIGINAL];
/// Positions of the first training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// The same of a Phi-3 whose file does not say.
const PHI3_ORIGINAL: usize = 4096;

/// Reads how the frequencies of `dims` dimensions are scaled in a model of `positions` positions: ignoring that would silently give a
/// worse model.
pub(super) fn read(keys: &Keys<'_>, family: Family, dims: usize, positions: usize) -> Result<Option<RopeScaling>> {
    let mut found = None;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.get(name) else { continue };
        let Some(table) = value.as_object() else {
            return Err(keys.wrong(format!("`{name}` must be a table or null, not {value}")));
        };
        let scaling =
            Table { name, keys: Keys { keys: table, path: keys.path } }.read(keys, family, dims, positions)?;
        // Where there are both, the first counts.
        found = found.or(scaling);
    }
    Ok(found)
}

/// The table in a file.
struct Table<'a> {
    name: &'static str,
    keys: Keys<'a>,
}

impl Table<'_> {
    fn read(&self, outer: &Keys<'_>, family: Family, dims: usize, positions: usize) -> Result<Option<RopeScaling>> {
        let kind = ["rope_type", "type"].iter().find_map(|key| self.keys.get(key)?.as_str()).unwrap_or("default");
        // Phi-3's first files called it otherwise.
        let kind = if family == Family::Phi3 && ["su", "yarn"].contains(&kind) { "longrope" } else { kind };
        let original = match outer.get(ORIGINAL) {
            Some(_) => outer.number(ORIGINAL, None)?,
            None if family == Family::Phi3 => self.keys.number(ORIGINAL, Some(PHI3_ORIGINAL))?,
            None => self.keys.number(ORIGINAL, Some(positions))?,
        };
        let (known, scaling): (&[&str], _) = match kind {
            "default" => (&[], None),
            "linear" => (&["factor"], Some(RopeScaling::Linear { factor: self.factor(None)? })),
            "dynamic" => (&["factor"], Some(RopeScaling::Dynamic { factor: self.factor(None)? })),
            "llama3" => (&["factor", "low_freq_factor", "high_freq_factor"], Some(self.llama3(original)?)),
            "yarn" => (&YARN, Some(self.yarn(original, positions)?)),
            "longrope" => (
                &["factor", "attention_factor", "short_factor", "long_factor"],
                Some(self.longrope(original, positions, dims)?),
            ),
            other => return Err(self.wrong(format!("of type `{other}` is not supported"))),
        };
        if scaling.is_some() && (dims < 4 || original == 0 || positions == 0) {
            return Err(self.wrong("needs heads with 4 rotated dimensions, and positions"));
        }
        let is_known = |(key, value): &(&String, &Value)| {
            let neutral = scaling.is_none() && *key == "factor" && value.as_f64() == Some(1.0);
            value.is_null() || neutral || COMMON.contains(&key.as_str()) || known.contains(&key.as_str())
        };
        match self.keys.keys.iter().find(|entry| !is_known(entry)) {
            Some((key, value)) => Err(self.wrong(format!("with `{key}` = {value} is not supported"))),
            None => Ok(scaling),
        }
    }

    fn wrong(&self, message: impl std::fmt::Display) -> crate::error::ModelError {
        self.keys.wrong(format!("`{}` {message}", self.name))
    }

    /// A positive number.
    fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let number = match (self.keys.get(name), default) {
            (None, None) => return Err(self.wrong(format!("has no `{name}`"))),
            (_, default) => self.keys.float(name, default.unwrap_or_default())?,
        };
        if number.is_finite() && number > 0.0 {
            return Ok(number);
        }
        Err(self.wrong(format!("with `{name}` = {number} is not supported: it must be positive")))
    }

    fn factor(&self, default: Option<f64>) -> Result<f64> {
        self.positive("factor", default)
    }

    fn llama3(&self, original: usize) -> Result<RopeScaling> {
        let (low, high) = (self.positive("low_freq_factor", None)?, self.positive("high_freq_factor", None)?);
        if low >= high {
            return Err(self.wrong("must have a `high_freq_factor` above its `low_freq_factor`"));
        }
        Ok(RopeScaling::Llama3 { factor: self.factor(None)?, low, high, original })
    }

    fn yarn(&self, original: usize, positions: usize) -> Result<RopeScaling> {
        let factor = self.factor(Some(positions as f64 / original.max(1) as f64))?;
        let scale = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        let weights = [self.keys.float("mscale", 0.0)?, self.keys.float("mscale_all_dim", 0.0)?];
        let usual = if weights.contains(&0.0) { scale(1.0) } else { scale(weights[0]) / scale(weights[1]) };
        Ok(RopeScaling::Yarn {
            factor,
            magnitude: self.positive("attention_factor", Some(usual))?,
            fast: self.positive("beta_fast", Some(32.0))?,
            slow: self.positive("beta_slow", Some(1.0))?,
            truncate: self.keys.flag("truncate", true)?,
            original,
        })
    }

    fn longrope(&self, original: usize, positions: usize, dims: usize) -> Result<RopeScaling> {
        let factor = self.factor(Some(positions as f64 / original.max(1) as f64))?;
        let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        Ok(RopeScaling::LongRope {
            short: self.divisors("short_factor", dims)?,
            long: self.divisors("long_factor", dims)?,
            magnitude: self.positive("attention_factor", Some(usual))?,
            original,
        })
    }

    /// A positive number for each pair of dimensions.
    fn divisors(&self, name: &str, dims: usize) -> Result<Vec<f32>> {
        let numbers = self.keys.get(name).and_then(Value::as_array).map(|values| {
            let numbers = values.iter().filter_map(Value::as_f64).map(|number| number as f32);
            numbers.filter(|number| *number > 0.0 && number.is_finite()).collect::<Vec<_>>()
        });
        let pairs = dims / 2;
        numbers.filter(|numbers| numbers.len() == pairs).ok_or_else(|| {
            self.wrong(format!("must have {pairs} positive numbers as `{name}`, one for two rotated dimensions"))
        })
    }
}

const YARN: [&str; 7] =
    ["factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"];

/// The table, with what other keys of a file say included.
pub(super) fn to_json(scaling: &RopeScaling) -> Value {
    let mut table = Map::from_iter([("rope_type".to_string(), json!(scaling.name()))]);
    let more = match scaling {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => json!({"factor": factor}),
        RopeScaling::Llama3 { factor, low, high, original } => {
            json!({"factor": factor, "low_freq_factor": low, "high_freq_factor": high, ORIGINAL: original})
        }
        RopeScaling::Yarn { factor, magnitude, fast, slow, truncate, original } => json!({"factor": factor,
            "attention_factor": magnitude, "beta_fast": fast, "beta_slow": slow, "truncate": truncate, ORIGINAL: original}),
        RopeScaling::LongRope { short, long, magnitude, original } => {
            json!({"short_factor": short, "long_factor": long, "attention_factor": magnitude, ORIGINAL: original})
        }
    };
    if let Value::Object(more) = more {
        table.extend(more);
    }
    Value::Object(table)
}
