//! The emulated `mma.sync` and `ldmatrix` against the layouts that NVIDIA publishes in CUTLASS (in `include/cute/atom`:
//! `SM80_16x8x16_F32BF16BF16F32_TN` of `mma_traits_sm80.hpp`, `SM75_U32x4_LDSM_N` and `SM75_U16x8_LDSM_T` of
//! `copy_traits_sm75.hpp`). Not through kernels of ours: those could share a mistake with the emulation.
#![allow(unsafe_code)]

use half::bf16;

unsafe extern "C" {
    fn imp_emulated_mma(a: *const u32, b: *const u32, c: *mut f32);
    fn imp_emulated_ldmatrix(transposed: i32, rows: *const u16, out: *mut u32);
}

fn bits(x: f32) -> u32 {
    u32::from(bf16::from_f32(x).to_bits())
}

#[test]
fn mma_has_the_published_layout() {
    // Small integers, distinct enough that no two layouts agree by chance: exact in bf16, and their sums in f32.
    let a: Vec<f32> = (0..16 * 16).map(|i| ((i * 37) % 251) as f32 - 125.0).collect(); // [m + 16 k]
    let b: Vec<f32> = (0..8 * 16).map(|i| ((i * 53) % 241) as f32 - 120.0).collect(); // [n + 8 k]
    let (mut in_a, mut in_b, mut c) = ([0_u32; 128], [0_u32; 64], [0_f32; 128]);
    for lane in 0..32 {
        // ((4,8),(2,2,2)) : ((32,1),(16,8,128)); value v = v0 + 2 v1 + 4 v2, two per register.
        for v in 0..8 {
            let at = lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 % 2 * 8 + v / 4 * 128;
            in_a[lane * 4 + v / 2] |= bits(a[at]) << (16 * (v % 2));
        }
        // ((4,8),(2,2)) : ((16,1),(8,64)).
        for v in 0..4 {
            let at = lane % 4 * 16 + lane / 4 + v % 2 * 8 + v / 2 * 64;
            in_b[lane * 2 + v / 2] |= bits(b[at]) << (16 * (v % 2));
        }
    }
    // SAFETY: four, two and four values for each of 32 lanes.
    unsafe { imp_emulated_mma(in_a.as_ptr(), in_b.as_ptr(), c.as_mut_ptr()) };
    for lane in 0..32 {
        for v in 0..4 {
            // ((4,8),(2,2)) : ((32,1),(16,8)), [m + 16 n].
            let at = lane % 4 * 32 + lane / 4 + v % 2 * 16 + v / 2 * 8;
            let (m, n) = (at % 16, at / 16);
            let want: f32 = (0..16).map(|k| a[m + 16 * k] * b[n + 8 * k]).sum();
            assert!((c[lane * 4 + v] - want).abs() < 0.5, "lane {lane}, value {v}: row {m}, column {n}");
        }
    }
}

#[test]
fn ldmatrix_has_the_published_layout() {
    #[repr(align(16))]
    struct Aligned([u16; 256]);
    // 32 rows of 8 values; lane l gives the address of row l.
    let rows = Aligned(std::array::from_fn(|i| i as u16));
    for transposed in [false, true] {
        let mut out = [0_u32; 128];
        // SAFETY: 32 aligned rows, and four registers for each of 32 lanes.
        unsafe { imp_emulated_ldmatrix(i32::from(transposed), rows.0.as_ptr(), out.as_mut_ptr()) };
        for (lane, v, i) in (0..32).flat_map(|lane| (0..4).flat_map(move |v| [(lane, v, 0), (lane, v, 1)])) {
            // In bits. N: (32,(32,4)) : (32,(1,1024)). T: ((4,8),(16,2,4)) : ((256,16),(1,128,1024)).
            let bit = if transposed {
                lane % 4 * 256 + lane / 4 * 16 + i * 128 + v * 1024
            } else {
                lane * 32 + i * 16 + v * 1024
            };
            let got = (out[lane * 4 + v] >> (16 * i)) as u16;
            assert_eq!(got, rows.0[bit / 16], "transposed {transposed}, lane {lane}, register {v}, half {i}");
        }
    }
}
