//! Work in rounds: the same bits as one by one, made as one where calls are the same.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    ORDERS,
    forgetful::{Forgetful, Forgets},
    gpu,
};
use crate::{
    precision::Precision,
    tensor::{
        Graph, KvCache, Mask, Mat, Place, Repeated, Weight, accumulate, attend_cached,
        device::{Device, rounds::Rounds, uploads::Sizes},
        linear,
    },
};

const WIDTH: usize = 32;

fn place(order: u32, forgets: Forgets) -> Place {
    let driver = Box::new(Forgetful::new(order, forgets));
    Place::device(Device::new(driver, u64::MAX, Sizes::EMULATED, Rounds::default()), Precision::F32)
}

/// Emulated devices, or the GPU that the environment names.
fn places() -> Vec<(String, Place)> {
    let card = std::env::var("IMP_FLOW_TEST_GPU").ok().filter(|_| gpu().is_some());
    let open = |index: String| Place::device(Device::open(index.parse().unwrap()).unwrap(), Precision::F32);
    match card.map(open) {
        Some(place) => vec![("card".into(), place)],
        None => ORDERS.map(|order| (format!("order {order}"), place(order, Forgets::Nothing))).into(),
    }
}

fn repeated(place: &Place) -> Repeated {
    place.device.as_ref().unwrap().repeated()
}

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed * 101) % 97) as f32 / 50.0 - 1.0).collect()
}

/// A layer whose inputs attend to all inputs before.
struct Layer {
    place: Place,
    weight: Weight,
    cache: KvCache,
    positions: usize,
}

impl Layer {
    fn new(place: &Place) -> Self {
        let weight = Weight::Dense(Mat::from_host(WIDTH, WIDTH, values(WIDTH * WIDTH, 7)).to(place));
        Self { place: place.clone(), weight, cache: KvCache::default(), positions: 0 }
    }

    /// What comes out for `rows` more inputs.
    fn next(&mut self, rows: usize) -> Vec<f32> {
        let g = Graph::inference();
        let input = Mat::from_host(rows, WIDTH, values(rows * WIDTH, self.positions)).to(&self.place);
        let mut x = linear(&g, &input, &self.weight, None);
        let positions: Vec<usize> = (self.positions..self.positions + rows).collect();
        self.positions += rows;
        let mut caches = vec![std::mem::take(&mut self.cache)];
        KvCache::append(&mut caches, &vec![0; rows], &x, &input);
        drop(input);
        self.cache = caches.remove(0);
        let attended = attend_cached(&x, &positions, &vec![&self.cache; rows], 2, 2, Mask::causal(None));
        accumulate(&mut x, &attended);
        linear(&g, &x, &self.weight, None).to_host().into_owned()
    }
}

/// The outputs of rounds with so many inputs each, one by one and in rounds.
fn outputs(place: &Place, rows: &[usize]) -> [Vec<Vec<f32>>; 2] {
    let (mut one_by_one, mut in_rounds) = (Layer::new(place), Layer::new(place));
    let expected = rows.iter().map(|rows| one_by_one.next(*rows)).collect();
    let repeats = place.repeats();
    let got = rows.iter().map(|rows| repeats.run(|| in_rounds.next(*rows))).collect();
    [expected, got]
}

#[test]
fn rounds_are_made_as_one_with_the_same_bits() {
    for (name, place) in places() {
        let device = place.device.clone().unwrap();
        {
            let [expected, got] = outputs(&place, &[1; 40]);
            assert_eq!(got, expected, "{name}");
        }
        let told = repeated(&place);
        assert_eq!((told.rounds, device.refusal()), (40, None));
        // All but the first ones, and some in which the cache is copied to a larger place: it doubles at 1, 2, 4, ..., 32.
        assert!(told.as_one > 30, "{name}: {told:?}");
        assert_eq!(device.live_bytes(), 0, "{name}");
    }
}

#[test]
fn rounds_may_differ() {
    for (name, place) in places() {
        let rows = [3, 3, 3, 3, 1, 1, 1, 1, 1, 2, 1, 5, 5, 5, 5, 5, 0, 0, 0, 0];
        let [expected, got] = outputs(&place, &rows);
        assert_eq!(got, expected, "{name}");
        assert!(repeated(&place).as_one > 0, "{name}");
    }
}

#[test]
fn a_device_that_keeps_no_calls_makes_them_one_by_one() {
    let place = place(2, Forgets::Keeping);
    let [expected, got] = outputs(&place, &[1; 9]);
    assert_eq!(got, expected);
    assert_eq!(repeated(&place).as_one, 0);
    let device = place.device.unwrap();
    assert_eq!(device.refusal().as_deref(), Some("the GPU failed in keep: it has no graphs"));
    assert_eq!(device.refusal(), None, "it is told once");
}

/// What is not of a round and is freed in it stays until the calls that use it are made.
#[test]
fn what_is_freed_in_a_round_is_there_for_its_calls() {
    for (name, place) in places() {
        let repeats = place.repeats();
        for round in 0..4 {
            let on_place = |seed| Mat::from_host(1, WIDTH, values(WIDTH, seed)).to(&place);
            let (mut sum, other) = (on_place(round), on_place(9));
            let got = repeats.run(|| {
                accumulate(&mut sum, &other);
                drop(other);
                sum.to_host().into_owned()
            });
            let expected = values(WIDTH, round).iter().zip(values(WIDTH, 9)).map(|(a, b)| a + b).collect::<Vec<_>>();
            assert_eq!(got, expected, "{name}, round {round}");
        }
    }
}

/// What a round has given back is there for what is larger.
#[test]
fn a_round_needs_no_more_memory_than_its_calls() {
    let place = Place::device(Device::emulated(2, 12_000), Precision::F32);
    let repeats = place.repeats();
    for _ in 0..4 {
        let sums = repeats.run(|| {
            [1000, 1200, 1400].map(|count| {
                let mut mat = Mat::from_host(1, count, vec![1.0; count]).to(&place);
                let other = mat.copy_rows(0..1);
                accumulate(&mut mat, &other);
                mat.to_host().iter().sum::<f32>()
            })
        });
        assert_eq!(sums.map(|sum| sum as u32), [2000, 2400, 2800]);
    }
}

#[test]
fn what_a_round_makes_can_be_used_after_it_and_without_rounds() {
    let place = place(2, Forgets::Nothing);
    let mut layer = Layer::new(&place);
    let expected: Vec<_> = (0..8).map(|_| layer.next(1)).collect();
    let mut layer = Layer::new(&place);
    let mut got = vec![layer.next(1)];
    for _ in 0..2 {
        let repeats = place.repeats();
        got.extend((0..3).map(|_| repeats.run(|| layer.next(1))));
    }
    got.push(layer.next(1));
    assert_eq!(got, expected);
}

#[test]
fn only_one_works_in_rounds_and_a_round_that_fails_leaves_nothing() {
    let place = place(2, Forgets::Nothing);
    let device = place.device.clone().unwrap();
    let mut layer = Layer::new(&place);
    let repeats = place.repeats();
    let other = place.repeats();
    (0..4).for_each(|_| drop(other.run(|| layer.next(1))));
    assert_eq!(repeated(&place).rounds, 0);
    for _ in 0..4 {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            repeats.run(|| {
                layer.next(1);
                let lost = Mat::from_host(1, 40, values(40, 1)).to(&place);
                panic!("{}", lost.rows());
            });
        }));
        assert!(failed.is_err());
    }
    assert_eq!(repeated(&place).rounds, 4);
    drop(layer);
    drop(repeats);
    assert_eq!(device.live_bytes(), 0);
}
