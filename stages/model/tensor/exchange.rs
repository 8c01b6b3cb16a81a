//! Values that pass from place to place beside what is being computed there: gradients to where they are added up, weights to
//! other replicas of a model. Independent of what they are.

use super::{
    Mat, Place,
    device::Device,
    host::{fresh, pointwise::accumulate_part},
    mat::Data,
};

/// A point in what a place has been told to compute.
pub struct Point(Option<(Device, usize)>);

impl Place {
    /// The point that all that was computed here so far comes before.
    pub fn point(&self) -> Point {
        Point(self.device.as_ref().map(|device| (device.clone(), device.point())))
    }
}

impl Point {
    /// Waits until it is reached.
    pub fn wait(&self) {
        if let Self(Some((device, point))) = self {
            device.reach(*point);
        }
    }
}

/// Makes all devices use each other's memory directly.
///
/// # Errors
/// Why they don't, in words.
pub fn connect(places: &[Place]) -> Result<(), String> {
    let devices: Vec<&Device> = places.iter().filter_map(|place| place.device.as_ref()).collect();
    for (number, device) in devices.iter().enumerate() {
        for (other_number, other) in devices.iter().enumerate().filter(|(other, _)| *other != number) {
            match device.let_in(other) {
                Ok(true) => {}
                Ok(false) => return Err(format!("GPU {other_number} can't use the memory of GPU {number} directly")),
                Err(error) => {
                    return Err(format!("GPU {other_number} can't use the memory of GPU {number} directly: {error}"));
                }
            }
        }
    }
    Ok(())
}

/// Values on their way. All have arrived when this is dropped; until then what they come from must not be changed, nor what they go
/// to be used by others than transfers.
pub struct Transfer {
    /// What is being read.
    parts: Vec<Mat>,
    /// Which devices read it.
    devices: Vec<Device>,
}

impl Transfer {
    /// A transfer of what was computed before `point`, for which it waits.
    pub fn after(point: &Point) -> Self {
        point.wait();
        Self { parts: Vec::new(), devices: Vec::new() }
    }

    /// Adds `part` to the `sum` at `place`, which it begins if it is the first.
    pub fn add(&mut self, sum: &mut Option<Mat>, part: Mat, place: &Place) {
        let Some(sum) = sum else {
            *sum = Some(self.moved(part, place));
            return;
        };
        match (sum.device_mat(), part.device_mat()) {
            (None, None) => accumulate_part(sum.values_mut(), part.values(), 1.0),
            (None, Some(from)) => {
                let from = from.clone();
                let to = sum.values_mut();
                from.read_beside(|start, values| accumulate_part(&mut to[start..], values, 1.0));
            }
            (Some(to), Some(from)) => {
                to.add_beside(from);
                self.keep(to.device().clone(), part);
            }
            (Some(_), None) => unreachable!("sums on a device are of parts on devices"),
        }
    }

    /// Replaces all values of `to` by those of `from`, which has the same shape.
    pub fn replace(&mut self, to: &mut Mat, from: &Mat) {
        match (&mut to.data, from.device_mat()) {
            (Data::Device(to), Some(source)) => {
                to.fetch(source);
                self.keep(to.device().clone(), from.clone());
            }
            _ => to.copy_from(&from.to_host()),
        }
    }

    /// `part` at `place`: itself, if it lies there and shares its memory with no other.
    fn moved(&mut self, part: Mat, place: &Place) -> Mat {
        match (part.device_mat(), &place.device) {
            (None, None) => part,
            (Some(from), Some(device)) if from.device() == device && from.is_alone() => part,
            (Some(from), Some(device)) => {
                let copy = Mat::on_device(from.fetched(device), place.precision);
                self.keep(device.clone(), part);
                copy
            }
            (Some(from), None) => {
                let mut values = fresh::zeros(part.count());
                from.read_beside(|start, piece| values[start..start + piece.len()].copy_from_slice(piece));
                Mat::from_host(part.rows(), part.cols(), values)
            }
            (None, Some(_)) => part.to(place),
        }
    }

    fn keep(&mut self, device: Device, part: Mat) {
        self.parts.push(part);
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        for device in &self.devices {
            if device.settle().is_err() {
                // A device that fails, fails in all later calls, which say so. Until it is closed it may use this memory.
                self.parts.drain(..).for_each(std::mem::forget);
            }
        }
    }
}
