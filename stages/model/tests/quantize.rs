//! `q4f16_1` against the bytes of MLC's own quantizer, and ggml's blocks against ggml's (`tests/fixtures/quant`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use imp_model::{
    Imp,
    encoding::{Encoding, q4f16},
    layers::Pass,
    quant, save,
    tensor::{Bytes, Stored},
};
use support::{Fixture, PHI, QWEN2, assert_close};

#[test]
fn bytes_are_mlcs() {
    let fixture = Fixture::open("quant/q4f16_1.safetensors");
    let (weights, shape) = (fixture.f32("weight"), fixture.shape("weight"));
    let (values, scales) = q4f16::narrow(&weights, shape[1]);
    assert!(scales == fixture.bytes("q4f16_1.q_scale"), "scales");
    assert!(values == fixture.bytes("q4f16_1.q_weight"), "values");

    let bytes = |bytes: Vec<u8>| {
        let length = bytes.len();
        Bytes::new(Arc::new(bytes), 0..length)
    };
    let stored = Stored::q4f16(shape[0], shape[1], bytes(values), bytes(scales));
    // The reference multiplies in f16, this in f32: the same once rounded.
    let rounded: Vec<f32> = stored.to_f32().iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
    assert_eq!(rounded, fixture.f32("q4f16_1.dequant"));
}

#[test]
fn a_width_that_is_no_multiple_of_the_group_loses_nothing() {
    let weights: Vec<f32> = (0..3 * 45).map(|i| (i as f32 * 0.37).sin()).collect();
    let (values, scales) = q4f16::narrow(&weights, 45);
    assert_eq!((values.len(), scales.len()), (3 * 2 * 16, 3 * 2 * 2));
    let (v, s) = (values.len(), scales.len());
    let stored = Stored::q4f16(3, 45, Bytes::new(Arc::new(values), 0..v), Bytes::new(Arc::new(scales), 0..s));
    // Half a level, and a level is at most 1/7.
    assert_close("dequantized", &stored.to_f32(), &weights, 0.5 / 7.0 + 1e-3);
    let zeros = q4f16::narrow(&[0.0; 64], 32);
    assert!(zeros.1.iter().all(|byte| *byte == 0), "a group of zeros has scale zero");
}

/// The fixture has what ggml wrote, and what it read again; not the weights from which it wrote them. But those that were
/// read are written as they were.
#[test]
fn blocks_are_ggmls() {
    let fixture = Fixture::open("quant/ggml.safetensors");
    for (name, encoding) in [("q4_0", Encoding::Q4_0), ("q4_1", Encoding::Q4_1), ("q8_0", Encoding::Q8_0)] {
        let (bytes, expected) = (fixture.bytes(name), fixture.f32(&format!("{name}.dequant")));
        assert_eq!(encoding.bytes(expected.len()), Some(bytes.len()), "{name}");
        let mut values = vec![f32::NAN; expected.len()];
        encoding.widen(&bytes, &mut values);
        assert_eq!(values, expected, "{name}");
        assert!(encoding.narrow(&values) == bytes, "{name}: bytes");
        let length = bytes.len();
        let stored = Stored::plain(4, 512, encoding, Bytes::new(Arc::new(bytes), 0..length));
        assert_eq!(stored.to_f32(), expected, "{name}: as a matrix");
    }
}

/// Merged models of both families: every weight is off by half a level at most, and multiplying by 4-bit weights gives
/// what multiplying by their values gives.
#[test]
fn quantized_models_are_the_network_of_their_values() {
    for family in [PHI, QWEN2] {
        let (small, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let quantized = quant::write(&family.path("imp"), small.path()).unwrap();
        let (exact, rounded) = (Imp::load(&family.path("imp")).unwrap(), Imp::load(small.path()).unwrap());
        let (exact, tensors) = (exact.llm.tensors(), rounded.llm.tensors());
        assert_eq!(exact.len(), tensors.len());
        for (exact, rounded) in exact.iter().zip(tensors) {
            assert_eq!(exact.name, rounded.name);
            // The largest weight of a group is seven levels; f16 rounds the scale.
            let largest = exact.values().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            assert_close(&exact.name, &rounded.values(), &exact.values(), largest / 14.0 * 1.01);
        }
        save::merged(&rounded, Encoding::F32, wide.path()).unwrap();
        let [small, wide] = [rounded, Imp::load(wide.path()).unwrap()].map(|model| {
            let batch = family.batch();
            let features = model.encode_images(&batch.images);
            let images = batch.image_numbers();
            model.forward(&Pass::inference(), &batch.samples(&images), &features).0.to_host().into_owned()
        });
        assert_close(family.name, &small, &wide, 1e-4);
        assert!(
            quantized.bytes * 8 < quantized.weights * 10,
            "patches, positions and norms stay in 16 bits: {quantized:?}"
        );
    }
}
