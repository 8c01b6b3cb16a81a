//! Tokens of answers on a device, whose calls are made as one: for models whose blocks differ, the same bits as without.

use imp_model::{
    Imp,
    encoding::Encoding,
    language::Decoder,
    layers::{Importance, Pass},
    load_language, quant, save,
    tensor::{self, Graph, Place, Segments},
};

use crate::support::{PHI, path, places};

/// Adapters, weights in 4 bits that are widened for each product, grouped heads, tied embeddings, stacked projections and a window.
fn models() -> Vec<(&'static str, Decoder)> {
    let [merged, quantized] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    save::merged(&PHI.model(), Encoding::F16, u64::MAX, merged.path()).unwrap();
    quant::write(merged.path(), &Importance::default(), quantized.path()).unwrap();
    let of_text = |name| (name, load_language(&path("extras").join(name)).unwrap());
    let mut all = ["phi_gqa", "qwen2_mha_tied", "phi3_mha_sliding10"].map(of_text).to_vec();
    all.push(("phi with adapters", PHI.model_with_lora().llm));
    all.push(("phi in 4 bits", Imp::load(quantized.path()).unwrap().llm));
    all
}

/// The logits of so many positions after a prompt, and how many calls were made by themselves in rounds.
fn decode(llm: &Decoder, place: &Place, count: usize) -> (Vec<Vec<f32>>, u64) {
    let embed = |ids: &[usize]| {
        let rows = ids.iter().map(|id| (0, *id)).collect();
        tensor::gather(&Graph::inference(), &[llm.embedding()], rows)
    };
    let (_, mut cache) = llm.prefill(&embed(&[7, 2, 5]), &Segments::new([3]), &[2]);
    let singles = || place.device.as_ref().unwrap().repeated().singles;
    let (before, repeats) = (singles(), place.repeats());
    let mut next = |position: usize| {
        let hidden = llm.decode(&embed(&[position * 3]), &[position], &[0], &mut cache, None);
        llm.logits(&Pass::inference(), &hidden).to_host().into_owned()
    };
    let logits = (3..3 + count).map(|position| repeats.run(|| next(position))).collect();
    (logits, singles() - before)
}

#[test]
fn tokens_are_made_as_one() {
    for (name, place) in places().into_iter().filter(|(_, place)| place.device.is_some()) {
        for (model, mut llm) in models() {
            llm.move_to(&place);
            let others = place.repeats();
            let (expected, none) = decode(&llm, &place, 16);
            drop(others);
            let (got, singles) = decode(&llm, &place, 16);
            assert!(got == expected, "{name} {model}");
            // Call by call are the first two rounds, and the two in which the cache moves, from 6 positions to 12 and to 24.
            let (_, of_two) = decode(&llm, &place, 2);
            let is_as_said = none == 0 && singles == 2 * of_two && of_two > 0;
            // Other tests use the card, too.
            assert!(
                is_as_said || name.starts_with("card"),
                "{name} {model}: {none}, {singles}, and {of_two} of two rounds"
            );
        }
    }
}

/// In bf16, frozen biases are rounded once, and not for each token.
#[test]
fn a_token_rounds_no_weights() {
    for (name, place) in places() {
        let Some(device) = place.device.clone().filter(|_| !name.starts_with("card")) else { continue };
        let mut llm = load_language(&path("extras").join("phi_gqa")).unwrap();
        llm.move_to(&place);
        decode(&llm, &place, 1);
        device.profile();
        device.spent();
        decode(&llm, &place, 1);
        let calls: Vec<_> = device.spent().into_iter().map(|spent| spent.name).collect();
        assert!(calls.iter().any(|call| call.starts_with("attention_cached")), "{name}: {calls:?}");
        assert!(!calls.contains(&"to_bf16".into()), "{name}: {calls:?}");
    }
}
