//! The hyperparameters of a training stage, and checks that types can't express. Independent of the kind.

use imp_model::{
    Precision,
    layers::{Parameter, Role, Tower},
    optim::Rate,
    schedule::{Schedule, warmup_steps},
};

use super::keys;
use crate::contract::stage::ConfigIssue;

keys::training_keys! { recipe }

impl Recipe {
    /// The number of warmup steps of `total`.
    pub(super) fn warmup(&self, total: usize) -> usize {
        self.warmup_steps.unwrap_or_else(|| warmup_steps(self.warmup_ratio, total))
    }

    /// The rates of step `index` (from 0) of `total`.
    pub(super) fn rates(&self, index: usize, total: usize) -> Rates {
        let factor = self.lr_scheduler.factor(index, self.warmup(total), total);
        let language = self.learning_rate * factor;
        let projector = self.projector_learning_rate.map_or(language, |rate| rate * factor);
        let vision = self.vision_learning_rate.map_or(language, |rate| rate * factor);
        Rates {
            language,
            lora_b: language * self.loraplus_lr_ratio,
            projector,
            vision,
            weight_decay: self.weight_decay,
        }
    }

    /// Checks ranges, and keys that need each other.
    pub(crate) fn check(&self) -> Result<(), ConfigIssue> {
        let not_negative = [
            ("learning_rate", self.learning_rate),
            ("projector_learning_rate", self.projector_learning_rate.unwrap_or(0.0)),
            ("weight_decay", self.weight_decay),
            ("adam_epsilon", self.adam_epsilon),
            ("max_grad_norm", self.max_grad_norm),
            ("neftune_noise_alpha", self.neftune_noise_alpha),
            ("vision_learning_rate", self.vision_learning_rate.unwrap_or(0.0)),
        ];
        for (key, value) in not_negative {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigIssue::new(key, format!("must not be negative, and is {value}")));
            }
        }
        // Five to fifteen is usual; far beyond, noise is all that is left of the embeddings.
        if self.neftune_noise_alpha > 1000.0 {
            let message = format!("must be at most 1000, and is {}", self.neftune_noise_alpha);
            return Err(ConfigIssue::new("neftune_noise_alpha", message));
        }
        for (key, value) in
            [("warmup_ratio", self.warmup_ratio), ("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)]
        {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigIssue::new(key, format!("must be at least 0 and less than 1, and is {value}")));
            }
        }
        if !(self.epochs.is_finite() && self.epochs > 0.0) {
            return Err(ConfigIssue::new("epochs", format!("must be greater than 0, and is {}", self.epochs)));
        }
        if self.global_batch_size == 0 {
            return Err(ConfigIssue::new("global_batch_size", "must be at least 1"));
        }
        // With one position there is nothing to predict.
        if self.max_length < 2 {
            return Err(ConfigIssue::new("max_length", "must be at least 2"));
        }
        if self.keep_best && self.eval_steps == 0 {
            return Err(ConfigIssue::new("keep_best", "needs `eval_steps`, and the input `validation`"));
        }
        if let Some(weight) = self.data_weights.iter().find(|weight| !(0.0..=1000.0).contains(*weight)) {
            return Err(ConfigIssue::new("data_weights", format!("must be between 0 and 1000, and one is {weight}")));
        }
        Ok(())
    }

    /// Checks the inputs that keys need.
    pub(crate) fn check_inputs(&self, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        let (weights, data) = (self.data_weights.len(), count("data"));
        if weights != 0 && weights != data {
            return Err(ConfigIssue::new("data_weights", format!("has {weights} number(s) for {data} `data`")));
        }
        if self.eval_steps > 0 && count("validation") == 0 {
            let message = "needs held-out records: give `validation`, the name of a preprocess stage";
            return Err(ConfigIssue::new("eval_steps", message));
        }
        Ok(())
    }
}

/// The learning rates and the weight decay of one step.
pub(super) struct Rates {
    /// The language model's learning rate.
    pub(super) language: f64,
    /// That of the matrices B of adapters and of DoRA's magnitudes.
    lora_b: f64,
    projector: f64,
    vision: f64,
    weight_decay: f64,
}

impl Rates {
    /// The rates of a parameter.
    pub(super) fn of(&self, parameter: &Parameter) -> Rate {
        Rate {
            learning_rate: match parameter.tower {
                Tower::Projector => self.projector,
                Tower::Vision => self.vision,
                Tower::Language => match parameter.role {
                    Role::LoraB | Role::Magnitude => self.lora_b,
                    Role::Matrix | Role::Bias | Role::Norm => self.language,
                },
            },
            weight_decay: if parameter.decays() { self.weight_decay } else { 0.0 },
        }
    }
}
