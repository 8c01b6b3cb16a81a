//! `q4f16_1` against the output of MLC's quantizer, and ggml's encodings against that of ggml (`tests/fixtures/quant`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use imp_model::{
    Imp,
    encoding::{Encoding, q4f16},
    layers::{Importance, Pass},
    quant, save,
    tensor::Stored,
};
use support::{Fixture, PHI, QWEN2, assert_close, bytes};

#[test]
fn bytes_equal_those_of_mlc() {
    let fixture = Fixture::open("quant/q4f16_1.safetensors");
    let (weights, shape) = (fixture.f32("weight"), fixture.shape("weight"));
    let (values, scales) = q4f16::narrow(&weights, shape[1]);
    assert!(scales == fixture.bytes("q4f16_1.q_scale"), "scales");
    assert!(values == fixture.bytes("q4f16_1.q_weight"), "values");

    let stored = Stored::q4f16(shape[0], shape[1], bytes(values), bytes(scales));
    // The reference multiplies in f16, this crate in f32; the results are equal after rounding to f16.
    let rounded: Vec<f32> = stored.to_f32().iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
    assert_eq!(rounded, fixture.f32("q4f16_1.dequant"));
}

#[test]
fn widths_need_not_be_a_multiple_of_the_group_size() {
    let weights: Vec<f32> = (0..3 * 45).map(|i| (i as f32 * 0.37).sin()).collect();
    let (values, scales) = q4f16::narrow(&weights, 45);
    assert_eq!((values.len(), scales.len()), (3 * 2 * 16, 3 * 2 * 2));
    let stored = Stored::q4f16(3, 45, bytes(values), bytes(scales));
    // The error is at most half a level, and a level at most 1/7.
    assert_close("dequantized", &stored.to_f32(), &weights, 0.5 / 7.0 + 1e-3);
    let zeros = q4f16::narrow(&[0.0; 64], 32);
    assert!(zeros.1.iter().all(|byte| *byte == 0), "a group of zeros has scale zero");
}

/// The fixture has quantized blocks and their dequantized values, not the original weights; quantizing the dequantized
/// values gives the same blocks.
#[test]
fn blocks_equal_those_of_ggml() {
    let fixture = Fixture::open("quant/ggml.safetensors");
    for (name, encoding) in [("q4_0", Encoding::Q4_0), ("q4_1", Encoding::Q4_1), ("q8_0", Encoding::Q8_0)] {
        let (blocks, expected) = (fixture.bytes(name), fixture.f32(&format!("{name}.dequant")));
        assert_eq!(encoding.bytes(expected.len()), Some(blocks.len()), "{name}");
        let mut values = vec![f32::NAN; expected.len()];
        encoding.widen(&blocks, &mut values);
        assert_eq!(values, expected, "{name}");
        assert!(encoding.narrow(&values) == blocks, "{name}: bytes");
        let stored = Stored::plain(4, 512, encoding, bytes(blocks));
        assert_eq!(stored.to_f32(), expected, "{name}: as a matrix");
    }
}

/// From the original weights, and back: `q4_K` and `q6_K` of an earlier ggml, the others of llama.cpp of 2026-10, which gives the same
/// two.
#[test]
fn k_quants_equal_those_of_ggml() {
    let weights = Fixture::open("quant/q4f16_1.safetensors").f32("weight");
    let fixture = Fixture::open("quant/kquants.safetensors");
    for (name, encoding) in [
        ("q5_0", Encoding::Q5_0),
        ("q5_1", Encoding::Q5_1),
        ("q4_K", Encoding::Q4K),
        ("q5_K", Encoding::Q5K),
        ("q6_K", Encoding::Q6K),
    ] {
        let (blocks, expected) = (fixture.bytes(name), fixture.f32(&format!("{name}.dequant")));
        let ours = encoding.narrow(&weights);
        assert_eq!(ours.len(), blocks.len(), "{name}");
        let different = ours.iter().zip(&blocks).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "{name}: of {} bytes", blocks.len());
        let mut values = vec![f32::NAN; expected.len()];
        encoding.widen(&blocks[..encoding.bytes(expected.len()).unwrap()], &mut values);
        assert_eq!(values, expected, "{name}");
        assert!(
            encoding.narrow(&[0.0; 512]).iter().all(|byte| ![0x7c, 0x7e, 0xfc, 0xfe].contains(byte)),
            "{name}: zeros"
        );
    }
}

/// The error of every weight is at most half a level, and 4-bit weights give the same logits as their dequantized
/// values.
#[test]
fn quantized_models_equal_their_dequantized_models() {
    for family in [PHI, QWEN2] {
        let (small, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let quantized = quant::write(&family.path("imp"), &Importance::default(), small.path()).unwrap();
        let (exact, rounded) = (Imp::load(&family.path("imp")).unwrap(), Imp::load(small.path()).unwrap());
        let (exact, tensors) = (exact.llm.tensors(), rounded.llm.tensors());
        assert_eq!(exact.len(), tensors.len());
        for (exact, rounded) in exact.iter().zip(tensors) {
            assert_eq!(exact.name, rounded.name);
            // The largest weight of a group is seven levels. The factor 1.01 allows for the rounding of the scale to
            // f16.
            let largest = exact.values().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            assert_close(&exact.name, &rounded.values(), &exact.values(), largest / 14.0 * 1.01);
        }
        save::merged(&rounded, Encoding::F32, u64::MAX, wide.path()).unwrap();
        let [small, wide] = [rounded, Imp::load(wide.path()).unwrap()].map(|model| {
            let batch = family.batch();
            let features = model.encode_images(&batch.images);
            let images = batch.image_numbers();
            model.forward(&Pass::inference(), &batch.samples(&images), &features).0.to_host().into_owned()
        });
        assert_close(family.name, &small, &wide, 1e-4);
        assert!(
            quantized.bytes * 8 < quantized.weights * 10,
            "under 10 bits per weight, though a few tensors are in f16: {quantized:?}"
        );
    }
}
