//! Copies of rows and columns: `kernels/gather.cuh`, `kernels/pointwise.cuh`.

use std::collections::BTreeMap;

use super::{converted, table};
use crate::tensor::{
    Graph, Mat,
    device::{Buffer, Device, DeviceGhost, DeviceMat, DeviceWeight, Type, launch::Kernel},
    tape::Slot,
};

/// A matrix of which rows are copied.
#[derive(Clone)]
pub(in crate::tensor) enum Source {
    Mat(Mat),
    Frozen(DeviceWeight),
    /// Values in host memory, decoded for this operation: the picked rows, in order, of a weight that is in 4 bits on the
    /// device.
    Rows(Vec<f32>),
}

/// The kernels' description of a source.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Described {
    address: u64,
    kind: i32,
    padding: i32,
}

impl Source {
    /// The source's memory; a new buffer is kept in `kept`.
    ///
    /// # Panics
    /// If a source does not lie on the device, which is a bug: all sources of an operation lie at one place.
    fn describe(&self, device: &Device, kept: &mut Vec<Buffer>) -> Described {
        let described = |address, kind| {
            let kind = match kind {
                Type::F32 => 0,
                Type::Bf16 => 1,
            };
            Described { address, kind, padding: 0 }
        };
        let of = |mat: Option<&DeviceMat>| {
            let Some(mat) = mat else { panic!("a source of rows lies elsewhere") };
            described(mat.buffer.address(), mat.kind)
        };
        match self {
            Self::Mat(mat) => of(mat.device_mat()),
            Self::Frozen(weight) => of(weight.plain()),
            Self::Rows(values) => {
                let buffer = Buffer::of(device, values);
                let address = buffer.address();
                kept.push(buffer);
                described(address, Type::F32)
            }
        }
    }
}

/// See [`crate::tensor::gather`]. `of` gives the sources and the row of each pick; the output is stored as `kind`.
pub(in crate::tensor) fn gather(
    g: &Graph,
    device: &Device,
    kind: Type,
    width: usize,
    sources: &[Source],
    picks: Vec<(usize, usize)>,
) -> Mat {
    let mut kept = Vec::new();
    let described: Vec<Described> = sources.iter().map(|source| source.describe(device, &mut kept)).collect();
    let mut decoded = vec![0; sources.len()];
    let flat: Vec<i32> = picks
        .iter()
        .flat_map(|(source, row)| {
            let row = if matches!(sources[*source], Source::Rows(_)) {
                decoded[*source] += 1;
                decoded[*source] - 1
            } else {
                *row
            };
            [*source as i32, row as i32]
        })
        .collect();
    let (described, flat) = (Buffer::of(device, &described), Buffer::of(device, &flat));
    let y = DeviceMat::new(device, picks.len(), width, kind);
    Kernel::of(device, "gather", kind).at(&described).at(&flat).at(&y.buffer).int(width).by_rows(picks.len());
    let mats: Vec<Option<&Mat>> =
        sources.iter().map(|source| if let Source::Mat(mat) = source { Some(mat) } else { None }).collect();
    let inputs: Vec<&Mat> = mats.iter().copied().flatten().collect();
    let y = g.device_output(y, &inputs);
    let trained: Vec<(usize, DeviceGhost)> = mats
        .iter()
        .enumerate()
        .filter_map(|(index, mat)| Some((index, mat.filter(|mat| mat.needs_grad)?.device_mat()?.ghost())))
        .collect();
    g.record_on_device(&y, move |dy, gradients| {
        for (index, mat) in &trained {
            add_rows_gradient(&dy, &picks, *index, &gradients.slot(mat));
        }
    });
    y
}

/// Adds the gradient of source `index`. Each row of the target sums the rows of `dy` that were copied from it, in order.
fn add_rows_gradient(dy: &DeviceMat, picks: &[(usize, usize)], index: usize, to: &Slot) {
    let mut from: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (position, (_, row)) in picks.iter().enumerate().filter(|(_, (source, _))| *source == index) {
        from.entry(*row as i32).or_default().push(position as i32);
    }
    if !to.add {
        super::super::launch::zero(&to.mat.buffer, to.mat.count() * to.mat.kind.size());
    }
    let rows: Vec<i32> = from.keys().copied().collect();
    let (mut starts, mut list) = (vec![0], Vec::new());
    for positions in from.into_values() {
        list.extend(positions);
        starts.push(list.len() as i32);
    }
    let (dy, name) = match (dy.kind, to.mat.kind) {
        (Type::Bf16, Type::F32) => (dy.clone(), "gather_gradient_bf16_f32"),
        (_, Type::F32) => (dy.clone(), "gather_gradient_f32"),
        (_, Type::Bf16) => (converted(dy, Type::Bf16), "gather_gradient_bf16"),
    };
    let tables = [&rows, &starts, &list].map(|values| table(&dy, values));
    let kernel = Kernel::new(dy.device(), name).at(&dy.buffer).at(&to.mat.buffer);
    tables.iter().fold(kernel, |kernel, table| kernel.at(table)).int(dy.cols).by_rows(rows.len());
}

/// Copies the rows of `from` to these addresses.
pub(in crate::tensor) fn scatter_rows(from: &DeviceMat, to: &[u64]) {
    Kernel::of(from.device(), "scatter_rows", from.kind)
        .at(&from.buffer)
        .at(&table(from, to))
        .int(from.cols)
        .by_rows(to.len());
}

/// See [`crate::tensor::concat`].
pub(in crate::tensor) fn concat(g: &Graph, width: usize, parts: &[&Mat]) -> Option<Mat> {
    let mats: Option<Vec<&DeviceMat>> = parts.iter().map(|part| part.device_mat()).collect();
    let mats = mats?;
    let first = mats.first()?;
    let y = DeviceMat::new(first.device(), mats.iter().map(|mat| mat.rows).sum(), width, first.kind);
    let row_bytes = y.row_bytes();
    let mut start = 0;
    for mat in &mats {
        let from = converted(mat, y.kind);
        y.buffer.copy(start * row_bytes, &from.buffer, 0, mat.rows * row_bytes);
        start += mat.rows;
    }
    let y = g.device_output(y, parts);
    let parts: Vec<(bool, DeviceGhost)> =
        parts.iter().zip(mats).map(|(part, mat)| (part.needs_grad, mat.ghost())).collect();
    g.record_on_device(&y, move |dy, gradients| {
        let mut start = 0;
        for (needs_grad, part) in parts {
            if needs_grad {
                let own = DeviceMat::new(dy.device(), part.rows, part.cols, dy.kind);
                let bytes = dy.row_bytes();
                own.buffer.copy(0, &dy.buffer, start * bytes, part.rows * bytes);
                gradients.give_on_device(&part, converted(&own, part.gradient));
            }
            start += part.rows;
        }
    });
    Some(y)
}

/// See [`crate::tensor::columns`].
pub(in crate::tensor) fn columns(g: &Graph, x: &Mat, start: usize, width: usize) -> Option<Mat> {
    let input = x.device_mat()?;
    let (kind, whole) = (input.kind, input.cols);
    let y = DeviceMat::new(input.device(), input.rows, width, kind);
    let ends = |kernel: Kernel<'_>, rows| kernel.int(whole).int(start).int(width).by_rows(rows);
    ends(Kernel::of(input.device(), "columns", kind).at(&input.buffer).at(&y.buffer), input.rows);
    let y = g.device_output(y, &[x]);
    let input = input.ghost();
    g.record_on_device(&y, move |dy, gradients| {
        let dx = gradients.slot(&input);
        let dy = converted(&dy, dx.mat.kind);
        Kernel::of(&input.device, "columns_gradient", dx.mat.kind)
            .at(&dy.buffer)
            .at(&dx.mat.buffer)
            .int(whole)
            .int(start)
            .int(width)
            .adding(dx.add)
            .by_rows(input.rows);
    });
    Some(y)
}
