//! Softmax cross-entropy, and its sum over chunks: `kernels/loss.cuh`.

use super::{converted, table};
use crate::tensor::{
    Gradients, Graph, Mat,
    device::{Buffer, DeviceGhost, DeviceMat, Type, launch::Kernel},
};

/// See [`crate::tensor::cross_entropy`].
pub(in crate::tensor) fn cross_entropy(g: &Graph, logits: &Mat, targets: &[u32], count: usize) -> Option<Mat> {
    let of = logits.device_mat()?;
    let wide = converted(of, Type::F32);
    let (device, scale) = (of.device(), 1.0 / count.max(1) as f32);
    let targets = table(of, targets);
    let [losses, log_totals] = [(); 2].map(|()| Buffer::new(device, of.rows * 4));
    let kernel = Kernel::new(device, "cross_entropy").at(&wide.buffer).at(&targets).at(&losses).at(&log_totals);
    kernel.int(of.cols).by_rows(of.rows);
    let loss = DeviceMat::new(device, 1, 1, Type::F32);
    Kernel::new(device, "sum_values").at(&losses).at(&loss.buffer).int(of.rows).value(scale).run([1, 1, 1], 256, 0);
    let loss = g.device_output(loss, &[logits]);
    let of = of.ghost();
    g.record_on_device(&loss, move |dy, gradients| {
        let dx = gradients.slot(&of);
        let dy = converted(&dy, Type::F32);
        Kernel::of(&of.device, "cross_entropy_gradient", dx.mat.kind)
            .at(&wide.buffer)
            .at(&targets)
            .at(&log_totals)
            .at(&dy.buffer)
            .value(scale)
            .at(&dx.mat.buffer)
            .int(of.cols)
            .adding(dx.add)
            .by_rows(of.rows);
    });
    Some(loss)
}

/// The sum of the losses of chunks, and the gradients for a sum whose own gradient is 1.
pub(in crate::tensor) struct ChunkedLoss {
    sum: DeviceMat,
    /// The input's gradient, chunk after chunk.
    dx: Option<DeviceMat>,
    parameters: Vec<(DeviceGhost, Option<DeviceMat>)>,
}

impl ChunkedLoss {
    /// The sum of no chunks of `x`. `parameters` are the other trainable matrices.
    pub(in crate::tensor) fn new(g: &Graph, x: &Mat, parameters: &[Mat]) -> Option<Self> {
        let of = x.device_mat()?;
        let sum = DeviceMat::zeros(of.device(), 1, 1, Type::F32);
        let dx = (g.records() && x.needs_grad).then(|| DeviceMat::zeros(of.device(), of.rows, of.cols, of.gradient));
        let parameters = parameters.iter().map(|mat| Some((mat.device_mat()?.ghost(), None)));
        Some(Self { sum, dx, parameters: parameters.collect::<Option<_>>()? })
    }

    /// Adds the loss `y` of the chunk that begins at row `start`, and its gradients.
    pub(in crate::tensor) fn add(&mut self, y: &Mat, chunk: &Mat, start: usize, gradients: Option<Gradients>) {
        if let Some(y) = y.device_mat() {
            super::accumulate(&self.sum, y, 1.0);
        }
        let Some(mut gradients) = gradients else { return };
        let taken = chunk.device_mat().and_then(|chunk| gradients.take_on_device(chunk.id));
        if let (Some(dx), Some(taken)) = (&self.dx, taken) {
            let taken = converted(&taken, dx.kind);
            dx.buffer.copy(start * dx.row_bytes(), &taken.buffer, 0, taken.rows * taken.row_bytes());
        }
        for (parameter, sum) in &mut self.parameters {
            match (sum.as_mut(), gradients.take_on_device(parameter.id)) {
                (Some(sum), Some(new)) => {
                    sum.make_unique();
                    super::accumulate(sum, &new, 1.0);
                }
                (None, new) => *sum = new,
                (Some(_), None) => {}
            }
        }
    }

    /// The sum, recorded as an operation on `x` and the parameters.
    pub(in crate::tensor) fn finish(self, g: &Graph, x: &Mat, parameters: &[Mat]) -> Mat {
        let inputs: Vec<&Mat> = parameters.iter().chain([x]).collect();
        let y = g.device_output(self.sum, &inputs);
        let mut given = self.parameters;
        if let (Some(x), Some(dx)) = (x.device_mat(), self.dx) {
            given.push((x.ghost(), Some(dx)));
        }
        g.record_on_device(&y, move |dy, gradients| {
            for (mat, sum) in given {
                let Some(sum) = sum else { continue };
                let to = gradients.slot(&mat);
                let sum = converted(&sum, to.mat.kind);
                Kernel::of(dy.device(), "accumulate_by", to.mat.kind)
                    .at(&to.mat.buffer)
                    .at(&sum.buffer)
                    .at(&dy.buffer)
                    .count(sum.count())
                    .adding(to.add)
                    .by_elements(sum.count());
            }
        });
        y
    }
}
