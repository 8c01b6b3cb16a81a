//! Attention: `kernels/attention.cuh` with tensor cores where widths allow it, else `kernels/attention_any.cuh`.

use std::sync::Arc;

use super::{converted, table};
use crate::tensor::{
    Graph, Mask, Mat, Segments,
    device::{
        Buffer, DeviceError, DeviceMat, Type,
        launch::{Kernel, must},
    },
};

/// Rows per tile of the kernels with tensor cores.
const TILE: usize = 64;
/// The widths of heads in shared memory for which there are such kernels.
const WIDTHS: [usize; 5] = [32, 64, 80, 96, 128];
/// The widest heads of the other kernels: `PARTS` in `kernels/lanes.cuh` times the lanes of a warp.
const WIDEST: usize = 256;
/// Threads per block, four warps.
const THREADS: u32 = 128;

/// The width of a head.
fn head_dim(q: &DeviceMat, heads: usize) -> usize {
    let dim = q.cols / heads;
    if dim > WIDEST {
        must::<()>(Err(DeviceError::Unsupported(format!("its heads have {dim} dimensions, more than {WIDEST}"))));
    }
    dim
}

/// The kernels' parameters.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Shape {
    heads: i32,
    group: i32,
    dim: i32,
    q_stride: i32,
    kv_stride: i32,
    causal: i32,
    window: i32,
    scale: f32,
}

impl Shape {
    fn new(q: &DeviceMat, k: &DeviceMat, heads: usize, mask: Mask) -> Self {
        let dim = head_dim(q, heads);
        let (causal, window) = match mask {
            Mask::Causal => (1, 0),
            Mask::Window(window) => (1, window as i32),
            Mask::Full => (0, 0),
        };
        Self {
            heads: heads as i32,
            group: (heads * dim / k.cols) as i32,
            dim: dim as i32,
            q_stride: q.cols as i32,
            kv_stride: k.cols as i32,
            causal,
            window,
            scale: 1.0 / (dim as f32).sqrt(),
        }
    }

    fn heads(self) -> usize {
        self.heads as usize
    }

    fn key_heads(self) -> usize {
        (self.heads / self.group) as usize
    }
}

/// Which kernels compute a shape, and their table of rows.
#[derive(Clone)]
enum Way {
    /// With tensor cores, heads lying in this width. Sequence start, first row and sequence end of each tile.
    Tiles { width: usize, count: usize, table: Arc<Buffer> },
    /// One warp for each row and head. First row and end row of each row's sequence.
    Rows(Arc<Buffer>),
}

impl Way {
    fn new(q: &DeviceMat, shape: Shape, segments: &Segments) -> Self {
        let dim = shape.dim as usize;
        let aligned = [dim, q.cols, shape.kv_stride as usize].iter().all(|width| width.is_multiple_of(8));
        let width = WIDTHS.into_iter().find(|width| *width >= dim);
        if let (Type::Bf16, true, Some(width)) = (q.kind, aligned, width) {
            let tiles = segments.iter().flat_map(|rows| {
                rows.clone().step_by(TILE).flat_map(move |first| [rows.start, first, rows.end].map(|row| row as i32))
            });
            let tiles: Vec<i32> = tiles.collect();
            return Self::Tiles { width, count: tiles.len() / 3, table: table(q, &tiles) };
        }
        let spans: Vec<i32> = segments
            .iter()
            .flat_map(|rows| std::iter::repeat_n([rows.start as i32, rows.end as i32], rows.len()))
            .flatten()
            .collect();
        Self::Rows(table(q, &spans))
    }
}

/// Bytes of `tiles` tiles in shared memory, whose rows are 8 values longer than `width`.
fn shared(tiles: usize, width: usize) -> usize {
    tiles * TILE * (width + 8) * 2
}

/// Blocks of four warps for `pairs` of row and head.
fn by_pairs(kernel: Kernel<'_>, pairs: usize) {
    kernel.run([pairs.div_ceil(4) as u32, 1, 1], THREADS, 0);
}

/// See [`crate::tensor::attention`].
pub(in crate::tensor) fn attention(
    g: &Graph,
    [q, k, v]: [&Mat; 3],
    heads: usize,
    segments: &Segments,
    mask: Mask,
) -> Option<Mat> {
    let inputs = [q.device_mat()?.clone(), k.device_mat()?.clone(), v.device_mat()?.clone()];
    let [q_mat, k_mat, v_mat] = &inputs;
    let (device, rows) = (q_mat.device(), q_mat.rows);
    let shape = Shape::new(q_mat, k_mat, heads, mask);
    let way = Way::new(q_mat, shape, segments);
    let out = DeviceMat::new(device, rows, q_mat.cols, q_mat.kind);
    let log_totals = Buffer::new(device, rows * heads * 4);
    let start = |name: String| Kernel::new(device, name).at(&q_mat.buffer).at(&k_mat.buffer).at(&v_mat.buffer);
    match &way {
        Way::Tiles { width, count, table } => start(format!("attention_forward_{width}"))
            .at(table)
            .at(&out.buffer)
            .at(&log_totals)
            .value(shape)
            .run([*count as u32, heads as u32, 1], THREADS, shared(3, *width)),
        Way::Rows(spans) => {
            let kernel = start(format!("attention_any_{}", q_mat.kind.suffix())).at(spans).at(&out.buffer);
            by_pairs(kernel.at(&log_totals).int(rows).value(shape), rows * heads);
        }
    }
    let result = g.device_output(out.clone(), &[q, k, v]);
    let needs = [q, k, v].map(Mat::needs_grad);
    let saved = Saved { inputs, out, log_totals, shape, way };
    g.record_on_device(&result, move |d_out, gradients| {
        let computed = saved.input_gradients(&converted(&d_out, saved.out.kind));
        // Given afterwards, since two of the inputs may be the same matrix.
        for ((mat, gradient), needed) in saved.inputs.iter().zip(computed).zip(needs) {
            if needed {
                gradients.give_on_device(&mat.ghost(), gradient);
            }
        }
    });
    Some(result)
}

/// What the backward pass needs.
struct Saved {
    inputs: [DeviceMat; 3],
    out: DeviceMat,
    log_totals: Buffer,
    shape: Shape,
    way: Way,
}

impl Saved {
    /// The gradients of queries, keys and values.
    fn input_gradients(&self, d_out: &DeviceMat) -> [DeviceMat; 3] {
        let [q, k, v] = &self.inputs;
        let (device, kind, shape) = (q.device(), q.kind, self.shape);
        let (rows, heads) = (q.rows, shape.heads());
        let pairs = rows * heads;
        let delta = Buffer::new(device, pairs * 4);
        let kernel = Kernel::of(device, "attention_delta", kind).at(&self.out.buffer).at(&d_out.buffer).at(&delta);
        by_pairs(kernel.int(pairs).value(shape.dim), pairs);
        let computed = [q, k, v].map(|mat| DeviceMat::new(device, mat.rows, mat.cols, kind));
        let [dq, dk, dv] = computed.each_ref().map(|mat| &*mat.buffer);
        let start = |name: String| {
            let kernel = Kernel::new(device, name).at(&q.buffer).at(&k.buffer).at(&v.buffer);
            kernel.at(&d_out.buffer).at(&self.log_totals).at(&delta)
        };
        match &self.way {
            Way::Tiles { width, count, table } => {
                let count = *count as u32;
                start(format!("attention_dq_{width}")).at(table).at(dq).value(shape).run(
                    [count, heads as u32, 1],
                    THREADS,
                    shared(4, *width),
                );
                start(format!("attention_dkv_{width}")).at(table).at(dk).at(dv).value(shape).run(
                    [count, shape.key_heads() as u32, 1],
                    THREADS,
                    shared(4, *width) + 8 * TILE,
                );
            }
            Way::Rows(spans) => {
                let kind = kind.suffix();
                let kernel = start(format!("attention_any_dq_{kind}")).at(spans).at(dq);
                by_pairs(kernel.int(rows).value(shape), pairs);
                let kernel = start(format!("attention_any_dkv_{kind}")).at(spans).at(dk).at(dv);
                by_pairs(kernel.int(rows).value(shape), rows * shape.key_heads());
            }
        }
        computed
    }
}

/// Keys and values at consecutive positions: the addresses of the first of each, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::tensor) struct Piece {
    pub(in crate::tensor) keys: u64,
    pub(in crate::tensor) values: u64,
    pub(in crate::tensor) count: usize,
}

/// The kernels' description of what a row attends to.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Described {
    keys: [u64; 2],
    values: [u64; 2],
    counts: [i32; 2],
}

/// See [`crate::tensor::attend_cached`]: `visible` has two pieces for each row.
pub(in crate::tensor) fn attend_cached(q: &Mat, visible: &[[Piece; 2]], heads: usize, kv_heads: usize) -> Option<Mat> {
    let queries = q.device_mat()?;
    let dim = head_dim(queries, heads);
    let described: Vec<Described> = visible
        .iter()
        .map(|pieces| Described {
            keys: pieces.map(|piece| piece.keys),
            values: pieces.map(|piece| piece.values),
            counts: pieces.map(|piece| piece.count as i32),
        })
        .collect();
    let out = DeviceMat::new(queries.device(), queries.rows, queries.cols, queries.kind);
    Kernel::of(queries.device(), "attention_cached", queries.kind)
        .at(&queries.buffer)
        .at(&table(queries, &described))
        .at(&out.buffer)
        .int(heads)
        .int(heads / kv_heads)
        .int(dim)
        .int(kv_heads * dim)
        .value(1.0 / (dim as f32).sqrt())
        .run([queries.rows as u32, heads as u32, 1], THREADS, 0);
    Some(Mat::on_device(out, q.precision))
}
