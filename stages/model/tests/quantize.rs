//! `q4f16_1` against the bytes of MLC's own quantizer (`tests/fixtures/quant`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use imp_model::tensor::{Bytes, Stored, quantize_q4f16};
use support::{Fixture, assert_close};

#[test]
fn bytes_are_mlcs() {
    let fixture = Fixture::open("quant/q4f16_1.safetensors");
    let (weights, shape) = (fixture.f32("weight"), fixture.shape("weight"));
    let (values, scales) = quantize_q4f16(&weights, shape[1]);
    assert!(scales == fixture.bytes("q4f16_1.q_scale"), "scales");
    assert!(values == fixture.bytes("q4f16_1.q_weight"), "values");

    let bytes = |bytes: Vec<u8>| {
        let length = bytes.len();
        Bytes::new(Arc::new(bytes), 0..length)
    };
    let stored = Stored::q4(shape[0], shape[1], bytes(values), bytes(scales));
    // The reference multiplies in f16, this in f32: the same once rounded.
    let rounded: Vec<f32> = stored.to_f32().iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
    assert_eq!(rounded, fixture.f32("q4f16_1.dequant"));
}

#[test]
fn a_width_that_is_no_multiple_of_the_group_loses_nothing() {
    let weights: Vec<f32> = (0..3 * 45).map(|i| (i as f32 * 0.37).sin()).collect();
    let (values, scales) = quantize_q4f16(&weights, 45);
    assert_eq!((values.len(), scales.len()), (3 * 2 * 16, 3 * 2 * 2));
    let (v, s) = (values.len(), scales.len());
    let stored = Stored::q4(3, 45, Bytes::new(Arc::new(values), 0..v), Bytes::new(Arc::new(scales), 0..s));
    // Half a level, and a level is at most 1/7.
    assert_close("dequantized", &stored.to_f32(), &weights, 0.5 / 7.0 + 1e-3);
    let zeros = quantize_q4f16(&[0.0; 64], 32);
    assert!(zeros.1.iter().all(|byte| *byte == 0), "a group of zeros has scale zero");
}
