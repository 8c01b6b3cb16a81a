//! The keys that `pretrain` and `finetune` share. Each is written here once, with its default in both kinds: the
//! configurations of the kinds, their defaults, the [`Recipe`](super::recipe::Recipe) and the reference of keys come from this table.

use serde::Serializer;

/// Calls the macro `$then` with `$before` and the table.
///
/// A line is `name: type = default;`, or `name: type = default, finetune: default;` if the kinds differ.
macro_rules! training_keys {
    ($then:ident $($before:tt)*) => {
        $crate::training::keys::$then! { $($before)*
            /// The longest sequence in tokens, an image counting as its patches. Longer ones are cut.
            max_length: usize = 3072;
            /// Passes over the data. The last may be a part of one: `0.5` trains on half of the steps.
            #[serde(serialize_with = "crate::training::keys::whole_if_whole")]
            epochs: f64 = 1.0, finetune: 2.0;
            /// Stops after this many steps; 0 for no limit.
            max_steps: usize = 0;
            /// Samples per step.
            global_batch_size: usize = 256, finetune: 128;
            /// The learning rate at its peak.
            learning_rate: f64 = 1e-3, finetune: 2e-4;
            /// The fraction of all steps in which the learning rate rises from 0 to its peak.
            warmup_ratio: f64 = 0.03;
            /// The number of these steps, instead of the fraction.
            #[serde(skip_serializing_if = "Option::is_none")]
            warmup_steps: Option<usize> = None;
            /// How the learning rate falls after its peak.
            lr_scheduler: Schedule = Schedule::Cosine;
            /// Decoupled weight decay. Norms and biases have none.
            weight_decay: f64 = 0.0;
            /// The decay rate of Adam's first moment.
            adam_beta1: f64 = 0.9;
            /// The decay rate of Adam's second moment.
            adam_beta2: f64 = 0.999;
            /// Added to Adam's denominator.
            adam_epsilon: f64 = 1e-8;
            /// Gradients are clipped to this norm; 0 for no clipping.
            max_grad_norm: f64 = 1.0;
            /// Fills each batch with either images or text only, and with samples of similar length.
            group_by_modality_length: bool = false, finetune: true;
            /// Steps between two measurements of the loss on `validation`; 0 for none.
            eval_steps: usize = 0;
            /// Keeps the weights with the smallest loss on `validation` instead of the last ones.
            keep_best: bool = false;
            /// How many times each data set is seen per epoch (default 1): 3 repeats it three times, 0.5 draws half of its
            /// records anew each epoch.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            data_weights: Vec<f64> = Vec::new();
            /// Of matrix products: `f32` (the default), or `bf16`, which rounds their operands to bf16 (to nearest even). Sums
            /// and everything else are in f32.
            #[serde(skip_serializing_if = "Precision::is_default")]
            precision: Precision = Precision::F32;
        }
    };
}

/// Declares `Config`, the keys of a training kind: its own, then the shared ones with the defaults of that kind.
macro_rules! training_config {
    ($kind:ident { $($own:tt)* }) => {
        $crate::training::keys::training_keys! { training_config @ $kind { $($own)* } }
    };
    (@ $kind:ident { $($own:tt)* }
        $( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])?
           $key:ident: $type:ty = $default:expr $(, finetune: $finetune:expr)?; )*
    ) => {
        $crate::contract::keys::keys! {
            /// The keys of the kind, with Imp's values as defaults.
            #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct Config {
                $($own)*
                $( $(#[doc = $doc])+ $(#[serde($($serde)*)])?
                   pub $key: $type = $crate::training::keys::default_in!($kind, $default $(, $finetune)?), )*
            }
        }

        impl Config {
            /// The shared keys.
            fn shared_recipe(&self) -> $crate::training::Recipe {
                $crate::training::Recipe {
                    $( $key: self.$key.clone(), )*
                    projector_learning_rate: None,
                    loraplus_lr_ratio: 1.0,
                    neftune_noise_alpha: 0.0,
                    vision_layers: 0,
                    vision_learning_rate: None,
                }
            }
        }
    };
}

/// Declares the [`Recipe`](super::recipe::Recipe).
macro_rules! recipe {
    ($( $(#[doc = $doc:literal])+ $(#[serde($($serde:tt)*)])?
        $key:ident: $type:ty = $default:expr $(, finetune: $finetune:expr)?; )*
    ) => {
        /// The hyperparameters of a training stage.
        #[derive(Debug, Clone)]
        pub(crate) struct Recipe {
            $( $(#[doc = $doc])+ pub(crate) $key: $type, )*
            /// The projector's peak learning rate, if not `learning_rate`.
            pub(crate) projector_learning_rate: Option<f64>,
            /// LoRA+: the learning rate of the matrices B of adapters, and of DoRA's magnitudes, is that of the language model times
            /// this.
            pub(crate) loraplus_lr_ratio: f64,
            /// The strength of NEFTune's noise on embedded tokens; 0 for none.
            pub(crate) neftune_noise_alpha: f64,
            /// Number of the vision encoder's last blocks that train.
            pub(crate) vision_layers: usize,
            /// Their peak learning rate.
            pub(crate) vision_learning_rate: Option<f64>,
        }
    };
}

/// The default of a key in a kind.
macro_rules! default_in {
    (finetune, $default:expr, $finetune:expr) => {
        $finetune
    };
    ($kind:ident, $default:expr $(, $finetune:expr)?) => {
        $default
    };
}

pub(crate) use {default_in, recipe, training_config, training_keys};

/// Writes a whole number without a decimal point, as keys were written before fractions were allowed.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn whole_if_whole<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let whole = *number as u64;
    // Exactly the numbers that are whole.
    if (whole as f64).to_bits() == number.to_bits() {
        serializer.serialize_u64(whole)
    } else {
        serializer.serialize_f64(*number)
    }
}
