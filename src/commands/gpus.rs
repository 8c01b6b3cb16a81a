//! Which GPUs stages can use, and why none if that is so. Independent of stages.

use imp_stages::place::{Card, Probe};

use crate::machine::Machine;

/// Notes in `machine` whether GPUs can be used. Unless the user has listed GPUs, the list becomes that of the usable ones.
pub(super) fn look(machine: &mut Machine, probe: &Probe) {
    let usable: Vec<&Card> = probe.cards.iter().filter(|card| card.usable.is_ok()).collect();
    machine.no_gpu = match machine.gpus_from {
        Some(source) if machine.gpus.is_empty() => Some(format!("{source} lists no GPU")),
        _ => unusable(probe),
    };
    machine.gpu_memory = usable.iter().map(|card| card.memory).filter(|bytes| *bytes > 0).min();
    if machine.gpus_from.is_none() && machine.no_gpu.is_none() {
        machine.gpus = usable.iter().map(|card| card.index.to_string()).collect();
    }
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
        let reason = card.usable.as_ref().err().map_or("", |reason| first_sentence(reason));
        return Some(format!("GPU {} ({}) can't be used: {reason}", card.index, card.name));
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
    use crate::machine::DevicePolicy;

    fn looked(gpus: &[&str], gpus_from: Option<&'static str>, probe: &Probe) -> (Vec<String>, Option<String>) {
        let gpus = gpus.iter().map(ToString::to_string).collect();
        let device = DevicePolicy::default();
        let mut machine = Machine { cpus: 1, gpus, gpus_from, no_gpu: None, gpu_memory: None, memory: None, device };
        look(&mut machine, probe);
        (machine.gpus, machine.no_gpu)
    }

    fn card(index: usize, usable: Result<(), String>) -> Card {
        Card { index, name: "X".into(), memory: 0, free: 0, compute_capability: (9, 0), usable }
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
    fn only_usable_cards_are_shared_out_unless_the_user_lists_them() {
        let cards = vec![card(0, Err("it is too old".into())), card(1, Ok(())), card(2, Ok(()))];
        let probe = Probe { driver: Ok("550.54".into()), cublaslt: Ok("12.4".into()), cards };
        assert_eq!(looked(&[], None, &probe), (vec!["1".into(), "2".into()], None));
        assert_eq!(looked(&["2"], Some("the file"), &probe), (vec!["2".into()], None));
        let hidden = looked(&[], Some("CUDA_VISIBLE_DEVICES"), &probe).1;
        assert_eq!(hidden.as_deref(), Some("CUDA_VISIBLE_DEVICES lists no GPU"));
    }
}
