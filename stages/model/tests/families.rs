//! Features that the Imps in the fixtures do not have: grouped-query attention, tied embeddings, sliding windows and
//! resized images against transformers (`tests/fixtures/extras`); Phi-3, Llama and Qwen2 against the f64 oracle
//! (`tests/oracle`).
#![allow(clippy::unwrap_used, missing_docs)]

mod oracle;
mod support;

use imp_model::{
    config::{Family, ImpConfig, LanguageConfig, ProjectorType},
    encoding::Encoding,
    init,
    language::Decoder,
    layers::{LoraSettings, Parameter, Pass, Tower},
    load_language, load_vision, peft,
    projector::Projector,
    tensor::{self, Activation, Graph, Mat, Segments},
    weights::{TensorFiles, write_json, write_tensors},
};
use oracle::{Oracle, Sizes, Weights};
use support::{Fixture, assert_close, check_text, path};

#[test]
fn grouped_queries_tied_embeddings_and_sliding_windows_equal_transformers() {
    for name in ["phi_gqa", "qwen2_mha_tied", "phi3_mha_sliding10"] {
        let llm = load_language(&path("extras").join(name)).unwrap();
        check_text(&llm, &Fixture::open(&format!("extras/{name}/expected.safetensors")));
    }
}

/// Imp's original code does not resize position embeddings; transformers does.
#[test]
fn resized_position_embeddings_equal_transformers() {
    let config = ImpConfig { mm_vision_select_layer: -1, ..ImpConfig::default() };
    let expected = Fixture::open("extras/siglip_interp/expected.safetensors");
    let mut vision = load_vision(&path("extras/siglip_interp"), &config).unwrap();
    vision.resize(42).unwrap();
    for (number, state) in vision.hidden_states(&expected.images("pixel_values")).iter().enumerate() {
        let name = format!("hidden_states.{number}");
        assert_close(&name, &state.to_host(), &expected.f32(&name), 1e-4);
    }
    assert!(vision.resize(13).is_err(), "smaller than a patch");
}

/// Small sizes with grouped queries; a sliding window in Phi-3, tied embeddings in Llama.
fn config(family: Family) -> LanguageConfig {
    LanguageConfig {
        family,
        intermediate_size: 104,
        num_key_value_heads: 3,
        head_dim: 12,
        rotary_dims: 12,
        norm_eps: 1e-5,
        hidden_act: Activation::Silu,
        sliding_window: (family == Family::Phi3).then_some(7),
        tie_word_embeddings: family == Family::Llama,
        ..LanguageConfig::phi(263, 72, 2, 6, 12)
    }
}

fn sizes(config: &LanguageConfig) -> Sizes {
    Sizes {
        vocab: config.vocab_size,
        hidden: config.hidden_size,
        inner: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        theta: config.rope_theta,
        epsilon: config.norm_eps,
        window: config.sliding_window,
    }
}

/// Replaces every value, in order.
fn change(mat: &mut Mat, to: impl FnMut(f32) -> f32) {
    let values: Vec<f32> = mat.to_host().iter().copied().map(to).collect();
    mat.copy_from(&values);
}

/// A model with random weights, including norms and biases, that was written and loaded; and its weights for the
/// oracle.
fn random(family: Family) -> (Decoder, Weights) {
    let folder = tempfile::tempdir().unwrap();
    let config = config(family);
    init::write_language(folder.path(), &config, 5, Encoding::F32).unwrap();
    let mut llm = load_language(folder.path()).unwrap();
    let mut number = 0.0_f32;
    llm.unfreeze();
    llm.trainable(&mut |_, mat| {
        // Makes constants (1 in norms, 0 in biases) different everywhere.
        change(mat, |value| {
            number += 1.0;
            value + 0.2 * (number * 12.9898).sin()
        });
    });
    let config_file = folder.path().join("config.json");
    write_tensors(&folder.path().join("model.safetensors"), llm.tensors(), Encoding::F32).unwrap();
    assert!(config_file.exists());
    let llm = load_language(folder.path()).unwrap();
    assert_eq!(llm.config, config, "{}", std::fs::read_to_string(config_file).unwrap());
    let weights = llm
        .tensors()
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor.values().iter().map(|value| f64::from(*value)).collect()));
    let weights = weights.collect();
    (llm, weights)
}

fn ids(count: usize) -> Vec<i32> {
    (0..count as i32).map(|i| i * i * 7 % 263).collect()
}

fn logits(llm: &Decoder, ids: &[i32]) -> Mat {
    let (pass, segments) = (Pass::inference(), Segments::new([ids.len()]));
    let embedded = embed(llm, &pass, ids);
    llm.logits(&pass, &llm.forward(&pass, &embedded, &segments))
}

fn embed(llm: &Decoder, pass: &Pass, ids: &[i32]) -> Mat {
    tensor::gather(&pass.graph, &[llm.embedding()], ids.iter().map(|id| (0, *id as usize)).collect())
}

const FAMILIES: [Family; 3] = [Family::Phi3, Family::Llama, Family::Qwen2];

#[test]
fn logits_equal_those_of_the_oracle() {
    for family in FAMILIES {
        let (llm, weights) = random(family);
        let ids = ids(19);
        let exact = Oracle { sizes: sizes(&llm.config), weights: &weights }.logits(&ids);
        let exact: Vec<f32> = exact.into_iter().flatten().map(|value| value as f32).collect();
        assert_close(&format!("{family:?}"), &logits(&llm, &ids).to_host(), &exact, 1e-4);
    }
}

/// Moves the trainable weights in a random direction: the oracle's loss must change by the directional derivative. The
/// oracle uses merged adapters, so this also checks the layout of adapters on stacked matrices.
#[test]
fn gradients_of_adapters_equal_those_of_the_oracle() {
    for family in FAMILIES {
        let (mut llm, weights) = random(family);
        llm.adapt(&LoraSettings::new(3, 6.0, 0.0), &[], 3).unwrap();
        let mut number = 0.0_f32;
        llm.trainable(&mut |_, mat| {
            change(mat, |value| {
                number += 1.0;
                value + 0.1 * (number * 78.233).sin()
            });
        });
        let ids = ids(15);
        let (loss, gradients) = loss_and_gradients(&mut llm, &ids);
        let at = |distance: f64| {
            let merged = merged(&llm, &weights, distance);
            Oracle { sizes: sizes(&llm.config), weights: &merged }.loss(&ids)
        };
        assert!((f64::from(loss) - at(0.0)).abs() < 1e-5, "{family:?}: loss {loss} instead of {}", at(0.0));
        let exact = (at(1e-5) - at(-1e-5)) / 2e-5;
        let mut index = 0;
        let ours: f64 = gradients
            .iter()
            .flat_map(|gradient| gradient.to_host().into_owned())
            .map(|gradient| {
                index += 1;
                f64::from(gradient) * direction(index)
            })
            .sum();
        assert!((ours - exact).abs() < 1e-4 * exact.abs().max(1.0), "{family:?}: {ours} instead of {exact}");
    }
}

fn direction(index: usize) -> f64 {
    (index as f64 * 0.7548).sin()
}

/// The weights with merged adapters, which were moved by `distance` along `direction`.
fn merged(llm: &Decoder, weights: &Weights, distance: f64) -> Weights {
    let mut weights = weights.clone();
    if llm.config.tie_word_embeddings {
        // The adapter of the output layer does not change the embedding.
        weights.insert("lm_head.weight".into(), weights["model.embed_tokens.weight"].clone());
    }
    let mut index = 0;
    let mut moved = |mat: &Mat| -> Vec<f64> {
        let values = mat.to_host().into_owned().into_iter().map(|value| {
            index += 1;
            f64::from(value) + distance * direction(index)
        });
        values.collect()
    };
    for linear in llm.linears() {
        let lora = linear.lora.as_ref().unwrap();
        let (a, b) = (moved(&lora.a), moved(&lora.b));
        let (rank, inputs) = (lora.a.rows(), lora.a.cols());
        let weight = weights.get_mut(&format!("{}.weight", linear.name)).unwrap();
        for (index, value) in weight.iter_mut().enumerate() {
            let (row, col) = (index / inputs, index % inputs);
            let product: f64 = (0..rank).map(|r| b[row * rank + r] * a[r * inputs + col]).sum();
            *value += f64::from(lora.scale) * product;
        }
    }
    weights
}

fn loss_and_gradients(llm: &mut Decoder, ids: &[i32]) -> (f32, Vec<Mat>) {
    let (pass, segments) = (Pass::training(0, 0), Segments::new([ids.len()]));
    let embedded = embed(llm, &pass, ids);
    let hidden = llm.forward(&pass, &embedded, &segments);
    let hidden = tensor::pick_rows(&pass.graph, &hidden, 0..ids.len() - 1);
    let targets = ids[1..].iter().map(|id| *id as u32).collect();
    let loss = tensor::cross_entropy(&pass.graph, &llm.logits(&pass, &hidden), targets, ids.len() - 1);
    let mut gradients = pass.graph.backward(&loss);
    let mut all = Vec::new();
    llm.trainable(&mut |_, mat| all.push(gradients.take(mat)));
    (loss.item(), all)
}

/// Full finetuning of a tied model: the gradient of the shared matrix is the sum over both of its uses.
#[test]
fn a_tied_matrix_has_one_gradient() {
    let (mut llm, weights) = random(Family::Llama);
    llm.unfreeze();
    let ids = ids(9);
    let (_, gradients) = loss_and_gradients(&mut llm, &ids);
    let mut names = Vec::new();
    llm.trainable(&mut |parameter, _| names.push(parameter.name));
    let shared = names.iter().position(|name| name == "lm_head.weight").unwrap();
    assert!(!names.contains(&"model.embed_tokens.weight".to_string()), "both are one matrix");
    let mut moved = weights.clone();
    let mut at = |distance: f64| {
        let embedding = weights["model.embed_tokens.weight"].iter().enumerate();
        let values = embedding.map(|(index, value)| value + distance * direction(index)).collect();
        moved.insert("model.embed_tokens.weight".into(), values);
        Oracle { sizes: sizes(&llm.config), weights: &moved }.loss(&ids)
    };
    let exact = (at(1e-5) - at(-1e-5)) / 2e-5;
    let ours: f64 =
        gradients[shared].to_host().iter().enumerate().map(|(index, g)| f64::from(*g) * direction(index)).sum();
    assert!((ours - exact).abs() < 1e-4 * exact.abs().max(1.0), "{ours} instead of {exact}");
}

/// Also on stacked matrices, under peft's names; a tied model whose output layer was adapted is written untied.
#[test]
fn adapters_of_every_family_round_trip_and_merge() {
    for family in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        let (mut llm, _) = random(family);
        let settings = LoraSettings::new(2, 4.0, 0.0);
        llm.adapt(&settings, &[], 3).unwrap();
        llm.trainable(&mut |_, mat| change(mat, |value| value + 0.05));
        let adapted = logits(&llm, &ids(9));
        peft::write(&llm, &settings, "", folder.path()).unwrap();
        let (mut reloaded, _) = random(family);
        peft::read(&mut reloaded, None, folder.path()).unwrap();
        assert_eq!(logits(&reloaded, &ids(9)).to_host(), adapted.to_host());

        let names = llm.linear_names();
        assert_eq!(names.contains("qkv_proj") && names.contains("gate_up_proj"), family == Family::Phi3);
        write_json(&folder.path().join("config.json"), &llm.merged_config().to_json()).unwrap();
        write_tensors(&folder.path().join("model.safetensors"), llm.tensors(), Encoding::F32).unwrap();
        let merged = load_language(folder.path()).unwrap();
        assert!(!merged.config.tie_word_embeddings);
        assert_close("merged", &logits(&merged, &ids(9)).to_host(), &adapted.to_host(), 1e-4);
        llm.fold();
        assert_close("folded", &logits(&llm, &ids(9)).to_host(), &adapted.to_host(), 1e-4);
    }
}

/// A window as wide as the sequence masks nothing.
#[test]
fn a_wide_window_equals_causal_attention() {
    let segments = Segments::new([40, 3]);
    let mats =
        [1, 2, 3].map(|seed| Mat::from_host(43, 8, (0..43 * 8).map(|i| ((i * seed) as f32 * 0.37).sin()).collect()));
    let run = |mask| {
        let [q, k, v] = &mats;
        tensor::attention(&Graph::inference(), q, k, v, 2, &segments, mask).to_host().into_owned()
    };
    assert_eq!(run(tensor::Mask::Window(40)), run(tensor::Mask::Causal));
    assert_ne!(run(tensor::Mask::Window(39)), run(tensor::Mask::Causal));
}

/// peft's `target_modules` lists the adapted layers.
#[test]
fn adapters_on_chosen_layers_only() {
    let folder = tempfile::tempdir().unwrap();
    let (mut llm, _) = random(Family::Qwen2);
    let settings = LoraSettings::new(2, 4.0, 0.0);
    let error = llm.adapt(&settings, &["qkv_proj".into()], 3).unwrap_err();
    assert!(
        error.starts_with("`qkv_proj` is not a linear layer of this model, which has down_proj, gate_proj"),
        "{error}"
    );
    llm.adapt(&settings, &["q_proj".into(), "v_proj".into()], 3).unwrap();
    let mut names = Vec::new();
    llm.trainable(&mut |parameter, _| names.push(parameter.name));
    assert_eq!(names.len(), 2 * 2 * 2, "two layers, two targets, A and B: {names:?}");
    peft::write(&llm, &settings, "", folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    let (mut reloaded, _) = random(Family::Qwen2);
    peft::read(&mut reloaded, None, folder.path()).unwrap();
    assert_eq!(logits(&reloaded, &ids(5)).to_host(), logits(&llm, &ids(5)).to_host());
}

/// As in transformers' trainer, which recognizes biases and norms by their names.
#[test]
fn biases_and_norms_do_not_decay() {
    for family in Family::ALL {
        let folder = tempfile::tempdir().unwrap();
        let config = LanguageConfig { num_key_value_heads: 3, ..LanguageConfig::new(family, 32, 24, 1, 6) };
        init::write_language(folder.path(), &config, 5, Encoding::F32).unwrap();
        let mut llm = load_language(folder.path()).unwrap();
        llm.unfreeze();
        llm.adapt(&LoraSettings::new(2, 4.0, 0.0), &[], 3).unwrap();
        let mut projector = Projector::fresh(ProjectorType::Mlp(2), 8, 24, 7).unwrap();
        projector.unfreeze();
        let mut count = [0, 0];
        let mut check = |parameter: Parameter, _: &mut Mat| {
            let named = parameter.name.contains("bias") || parameter.name.contains("norm");
            assert_eq!(parameter.decays(), !named, "{parameter:?}");
            let projects = parameter.name.contains("mm_projector");
            assert_eq!(parameter.tower == Tower::Projector, projects, "{parameter:?}");
            count[usize::from(named)] += 1;
        };
        llm.trainable(&mut check);
        projector.trainable(&mut check);
        assert!(count[0] > 14 && count[1] >= 5, "{family:?}: {count:?}");
    }
}

/// Every type, also through files: the number of linear layers, and LLaVA's tensor names.
#[test]
fn projectors_of_every_type() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mm_projector.safetensors");
    let x = Mat::from_host(5, 6, (0..30).map(|i| (i as f32 * 0.7).sin()).collect());
    for (kind, outputs, names) in [
        ("identity", 6, [].as_slice()),
        ("linear", 4, &[""]),
        ("mlp1x_gelu", 4, &["0."]),
        ("mlp2x_gelu", 4, &["0.", "2."]),
        ("mlp3x_gelu", 4, &["0.", "2.", "4."]),
    ] {
        let kind: ProjectorType = kind.parse().unwrap();
        let projector = Projector::fresh(kind, 6, outputs, 7).unwrap();
        let found: Vec<String> = projector.tensors().iter().map(|tensor| tensor.name.clone()).collect();
        let expected =
            names.iter().flat_map(|name| ["weight", "bias"].map(|part| format!("model.mm_projector.{name}{part}")));
        assert_eq!(found, expected.collect::<Vec<_>>(), "{kind}");
        let y = projector.forward(&Pass::inference(), &x);
        assert_eq!((y.rows(), y.cols()), (5, outputs), "{kind}");
        if kind == ProjectorType::Identity {
            assert_eq!(y.to_host(), x.to_host());
            continue;
        }
        write_tensors(&file, projector.tensors(), Encoding::F32).unwrap();
        let reloaded =
            Projector::load(&TensorFiles::open_file(&file).unwrap(), "model.mm_projector.", kind, 6, outputs).unwrap();
        assert_eq!(reloaded.forward(&Pass::inference(), &x).to_host(), y.to_host(), "{kind}");
    }
    let error = Projector::fresh(ProjectorType::Identity, 6, 4, 7).err().unwrap().to_string();
    assert!(
        error.contains("mm_projector_type `identity` requires equal widths, but they are 6 (vision) and 4 (language)"),
        "{error}"
    );
}
