//! Values that pass from place to place beside what is being computed there: gradients to where they are added up, weights to
//! other replicas of a model. Independent of what they are.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use super::{
    Mat, Place,
    device::{Buffer, Device, DeviceError, DeviceMat},
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

/// Why a device does not use the memory of another directly.
#[derive(Debug, PartialEq, Eq)]
pub struct Unconnected {
    /// The number of the place that should read.
    pub reader: usize,
    /// The number of the place that should be read.
    pub read: usize,
    /// Why it is not, in words.
    pub reason: String,
    /// Whether one of both devices is of no more use.
    pub is_fatal: bool,
}

/// Makes all devices of `places` use each other's memory directly, as far as the tests show that it works.
///
/// # Errors
/// The first pair that does not. Values then pass through the host wherever devices don't reach each other.
pub fn connect(places: &[Place]) -> Result<(), Unconnected> {
    let devices: Vec<&Device> = places.iter().filter_map(|place| place.device.as_ref()).collect();
    let numbers = 0..devices.len();
    let pairs: Vec<(usize, usize)> = numbers
        .clone()
        .flat_map(|read| numbers.clone().map(move |reader| (read, reader)))
        .filter(|(a, b)| a != b)
        .collect();
    let each = |what: &str, attempt: &dyn Fn(usize, &Device, &Device) -> Result<bool, DeviceError>| {
        pairs.iter().enumerate().try_for_each(|(number, (read, reader))| {
            // Operations end in a panic where a device fails.
            let attempt = || attempt(number, devices[*read], devices[*reader]);
            let reason = match catch_unwind(AssertUnwindSafe(attempt)) {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => what.into(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => match panic.downcast::<DeviceError>() {
                    Ok(error) => error.to_string(),
                    Err(panic) => resume_unwind(panic),
                },
            };
            // What fails when it is done, and not when it is called, fails all later calls.
            let is_fatal = [devices[*read], devices[*reader]].iter().any(|device| device.settle().is_err());
            Err(Unconnected { reader: *reader, read: *read, reason, is_fatal })
        })
    };
    // All memory is open before the first trial, as it will be.
    each("there is no direct way", &|_, read, reader| read.let_in(reader))?;
    each("other bytes arrived than were sent", &|number, read, reader| read.is_read_by(reader, 1009 * (number + 1)))
}

/// A place at which values did not arrive.
#[derive(Debug)]
pub struct Fault {
    /// Where it is.
    pub place: Place,
    /// What happened.
    pub error: DeviceError,
}

impl Fault {
    /// Ends the computation, as a failing operation does.
    ///
    /// # Panics
    /// With the error.
    pub fn raise(self) -> ! {
        std::panic::panic_any(self.error)
    }
}

/// Values on their way. All have arrived when this ends; until then what they come from must not be changed, nor what they go to be
/// used by others than transfers.
pub struct Transfer {
    /// What is being read, and what is being written.
    kept: Vec<Arc<Buffer>>,
    /// Which devices do it.
    devices: Vec<Device>,
}

impl Transfer {
    /// A transfer of what was computed before `point`, for which it waits.
    pub fn after(point: &Point) -> Self {
        point.wait();
        Self { kept: Vec::new(), devices: Vec::new() }
    }

    /// Adds `part` to the `sum` at `place`, which it begins if it is the first.
    ///
    /// # Panics
    /// If they have different numbers of values, which is a bug in the caller.
    pub fn add(&mut self, sum: &mut Option<Mat>, part: Mat, place: &Place) {
        let Some(sum) = sum else {
            *sum = Some(self.moved(part, place));
            return;
        };
        assert_eq!(sum.count(), part.count(), "the number of values");
        let place = sum.place();
        match (sum.device_mat(), part.device_mat()) {
            (Some(to), from) => {
                let reached = from.filter(|from| to.device().reaches(from.device()));
                let part = if reached.is_some() { part.clone() } else { part.to(&place) };
                if reached.is_none() {
                    place.point().wait();
                }
                if let Some(from) = part.device_mat() {
                    to.add_beside(from);
                    self.keep(to, from);
                }
            }
            (None, Some(from)) => {
                let (from, to) = (from.clone(), sum.values_mut());
                from.read_beside(|start, values| accumulate_part(&mut to[start..], values, 1.0));
            }
            (None, None) => accumulate_part(sum.values_mut(), part.values(), 1.0),
        }
    }

    /// Replaces all values of `to` by those of `from`, which has the same shape.
    pub fn replace(&mut self, to: &mut Mat, from: &Mat) {
        match (&mut to.data, from.device_mat()) {
            (Data::Device(to), Some(source)) if to.device().reaches(source.device()) => {
                to.fetch(source);
                self.keep(to, source);
            }
            _ => to.copy_from(&from.to_host()),
        }
    }

    /// Waits until all have arrived.
    ///
    /// # Errors
    /// The place that failed.
    pub fn finish(mut self) -> Result<(), Fault> {
        for device in std::mem::take(&mut self.devices) {
            if let Err(error) = device.settle() {
                self.leak();
                return Err(Fault { place: Place { device: Some(device), ..Place::default() }, error });
            }
        }
        Ok(())
    }

    /// `part` at `place`: itself, if it lies there and shares its memory with no other.
    fn moved(&mut self, part: Mat, place: &Place) -> Mat {
        match (part.device_mat(), &place.device) {
            (None, None) => part,
            (Some(from), Some(device)) if from.device() == device && from.is_alone() => part,
            (Some(from), Some(device)) if device.reaches(from.device()) => {
                let copy = from.fetched(device);
                self.keep(&copy, from);
                Mat::on_device(copy, place.precision)
            }
            (Some(from), None) => {
                let mut values = fresh::zeros(part.count());
                from.read_beside(|start, piece| values[start..start + piece.len()].copy_from_slice(piece));
                Mat::from_host(part.rows(), part.cols(), values)
            }
            (_, Some(_)) => part.to(place),
        }
    }

    /// Keeps the memory of both while `to` is written.
    fn keep(&mut self, to: &DeviceMat, from: &DeviceMat) {
        self.kept.extend([Arc::clone(&to.buffer), Arc::clone(&from.buffer)]);
        if !self.devices.contains(to.device()) {
            self.devices.push(to.device().clone());
        }
    }

    /// A device that failed may use the memory until it is closed.
    fn leak(&mut self) {
        self.kept.drain(..).for_each(std::mem::forget);
    }
}

/// Without [`Transfer::finish`], when a thread panics.
impl Drop for Transfer {
    fn drop(&mut self) {
        let settled = self.devices.iter().map(Device::settle).all(|settled| settled.is_ok());
        if !settled {
            self.leak();
        }
    }
}
