//! Which GPUs stages can use, and why none if that is so. Independent of stages.

use imp_stages::place::{Card, Probe};

use crate::machine::Machine;

/// [`look`] with what this process was allowed to see.
pub(super) fn look_here(machine: &mut Machine, probe: &Probe) {
    look(machine, probe, std::env::var_os("CUDA_VISIBLE_DEVICES").is_some());
}

/// Notes in `machine` whether GPUs can be used. The list becomes that of the usable ones; what the user has listed only if
/// none of it can be used. `renumbered`: the probe saw only the GPUs in `CUDA_VISIBLE_DEVICES`, under other numbers.
fn look(machine: &mut Machine, probe: &Probe, renumbered: bool) {
    let mut usable: Vec<&Card> = probe.cards.iter().filter(|card| card.usable.is_ok()).collect();
    machine.no_gpu = match machine.gpus_from {
        Some(source) if machine.gpus.is_empty() => Some(format!("{source} lists no GPU")),
        _ => unusable(probe),
    };
    if machine.gpus_from.is_none() && machine.no_gpu.is_none() {
        machine.gpus = usable.iter().map(|card| card.index.to_string()).collect();
    } else if machine.no_gpu.is_none() && !renumbered {
        usable.retain(|card| machine.gpus.contains(&card.index.to_string()));
        match usable.as_slice() {
            [] => machine.no_gpu = Some(none_of(&machine.gpus, probe)),
            listed => machine.gpus.retain(|name| listed.iter().any(|card| card.index.to_string() == *name)),
        }
    }
    machine.gpu_memory = usable.iter().map(|card| card.memory).filter(|bytes| *bytes > 0).min();
}

/// Why none of the listed GPUs can be used.
fn none_of(listed: &[String], probe: &Probe) -> String {
    match probe.cards.iter().find(|card| listed.contains(&card.index.to_string())) {
        Some(card) => cannot(card),
        None => format!("GPU {} is listed, and the driver knows {} of them", listed.join(", "), probe.cards.len()),
    }
}

fn cannot(card: &Card) -> String {
    let reason = card.usable.as_ref().err().map_or("", |reason| first_sentence(reason));
    format!("GPU {} ({}) can't be used: {reason}", card.index, card.name)
}

/// Why no GPU can be used, if so: the first thing to mend.
fn unusable(probe: &Probe) -> Option<String> {
    let Some(card) = probe.cards.first() else {
        return Some(match &probe.driver {
            Err(reason) => format!("no GPU was found; {}", first_sentence(reason)),
            Ok(version) => format!("no GPU was found by NVIDIA's driver {version}"),
        });
    };
    if probe.cards.iter().all(|card| card.usable.is_err()) {
        return Some(cannot(card));
    }
    probe.cublaslt.as_ref().err().map(|reason| first_sentence(reason).into())
}

/// A reason may go on with what to do about it, which `imp-flow doctor` shows.
fn first_sentence(reason: &str) -> &str {
    reason.split_once(". ").map_or(reason, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DevicePolicy, Elsewhere};

    fn looked(gpus: &[&str], gpus_from: Option<&'static str>, probe: &Probe) -> (Vec<String>, Option<String>) {
        let gpus = gpus.iter().map(ToString::to_string).collect();
        let (device, elsewhere) = (DevicePolicy::default(), Elsewhere::default());
        let mut machine =
            Machine { cpus: 1, gpus, gpus_from, no_gpu: None, gpu_memory: None, memory: None, device, elsewhere };
        look(&mut machine, probe, gpus_from == Some("CUDA_VISIBLE_DEVICES"));
        (machine.gpus, machine.no_gpu)
    }

    fn card(index: usize, usable: Result<(), String>) -> Card {
        Card { index, name: "X".into(), memory: 0, compute_capability: (9, 0), usable }
    }

    #[test]
    fn the_first_reason_is_given() {
        let missing = |name: &str| Err(format!("{name} is missing"));
        let none = Probe { driver: missing("libcuda.so.1"), cublaslt: missing("libcublasLt.so.12"), cards: vec![] };
        let reason = "no GPU was found; libcuda.so.1 is missing";
        assert_eq!(looked(&[], None, &none), (vec![], Some(reason.into())));
        assert_eq!(looked(&["4"], Some("the file"), &none), (vec!["4".into()], Some(reason.into())));
        let idle = Probe { driver: Ok("550.54".into()), ..none.clone() };
        assert_eq!(looked(&[], None, &idle).1.as_deref(), Some("no GPU was found by NVIDIA's driver 550.54"));
        let old = Probe { cards: vec![card(0, Err("it is too old".into()))], ..idle };
        assert_eq!(looked(&["0"], None, &old).1.as_deref(), Some("GPU 0 (X) can't be used: it is too old"));
        let bare =
            Probe { cards: vec![card(0, Ok(()))], cublaslt: Err("cuBLAS was not found. Install it".into()), ..old };
        assert_eq!(looked(&[], None, &bare), (vec![], Some("cuBLAS was not found".into())));
    }

    #[test]
    fn only_usable_cards_are_shared_out_and_of_what_the_user_lists_too() {
        let cards = vec![card(0, Err("it is too old".into())), card(1, Ok(())), card(2, Ok(()))];
        let probe = Probe { driver: Ok("550.54".into()), cublaslt: Ok("12.4".into()), cards };
        assert_eq!(looked(&[], None, &probe), (vec!["1".into(), "2".into()], None));
        assert_eq!(looked(&["2"], Some("the file"), &probe), (vec!["2".into()], None));
        assert_eq!(looked(&["0", "2"], Some("the file"), &probe), (vec!["2".into()], None));
        let old = looked(&["0"], Some("the file"), &probe).1;
        assert_eq!(old.as_deref(), Some("GPU 0 (X) can't be used: it is too old"));
        let absent = looked(&["7"], Some("the file"), &probe).1;
        assert_eq!(absent.as_deref(), Some("GPU 7 is listed, and the driver knows 3 of them"));
        assert_eq!(looked(&["7"], Some("CUDA_VISIBLE_DEVICES"), &probe), (vec!["7".into()], None), "other numbers");
        let hidden = looked(&[], Some("CUDA_VISIBLE_DEVICES"), &probe).1;
        assert_eq!(hidden.as_deref(), Some("CUDA_VISIBLE_DEVICES lists no GPU"));
    }
}
