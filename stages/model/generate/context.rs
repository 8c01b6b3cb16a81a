//! What a model has read of one sequence, so that it can read on: more of it, or another end. Independent of what the sequence says.

use std::ops::ControlFlow;

use super::{GenerateOptions, NotANumber, prefix::Prefilled};
use crate::{
    imp::Imp,
    language::Cache,
    layers::Pass,
    sample::Sample,
    tensor::{self, Mat, Segments},
};

/// Rows that are read at once: between them a caller can stop.
const ROWS_AT_ONCE: usize = 512;

/// The KV cache of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// `cache[layer][0]`; empty before the first position.
    cache: Cache,
    positions: usize,
}

impl Context {
    /// The number of positions that were read.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Forgets all but the first `positions`.
    pub fn truncate(&mut self, positions: usize) {
        self.positions = self.positions.min(positions);
        for cache in self.cache.iter_mut().flatten() {
            cache.truncate(self.positions);
        }
    }
}

impl Imp {
    /// Reads `prompt` after what `context` has, and answers. Whatever was computed stays in the context: the prompt, and all tokens of
    /// the answer but those that nothing followed. `on_token` is called as in [`Imp::stream`]; while a prompt is read, it is
    /// called with no tokens and can end that. The caller sees to it that all positions fit into the model's context length.
    ///
    /// The order of summation in matrix products depends on the number of rows, so logits equal those of [`Imp::stream`] on the whole
    /// sequence within rounding.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn continue_from(
        &self,
        context: &mut Context,
        prompt: &Sample<'_>,
        features: &Mat,
        options: &GenerateOptions,
        mut on_token: impl FnMut(&[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<u32>, NotANumber> {
        let Some(hidden) = self.read(context, prompt, features, || on_token(&[]).is_break()) else {
            return Ok(Vec::new());
        };
        let mut prefilled =
            Prefilled { hidden, cache: std::mem::take(&mut context.cache), lengths: vec![context.positions] };
        let prompts = std::slice::from_ref(prompt);
        let answers = self.answer(prompts, &mut prefilled, options, &mut |_, answer| on_token(answer));
        *context = Context { cache: prefilled.cache, positions: prefilled.lengths[0] };
        Ok(answers?.pop().unwrap_or_default())
    }

    /// Reads a prompt after what `context` has. Returns the hidden state of its last position, `[1, hidden]`; none if the prompt is
    /// empty or `stopped` said so before its end.
    fn read(
        &self,
        context: &mut Context,
        prompt: &Sample<'_>,
        features: &Mat,
        mut stopped: impl FnMut() -> bool,
    ) -> Option<Mat> {
        let pass = Pass::inference();
        let embedded = self.splice(&pass, std::slice::from_ref(prompt), features).embedded;
        let mut last = None;
        for start in (0..embedded.rows()).step_by(ROWS_AT_ONCE) {
            if stopped() {
                return None;
            }
            let rows = start..embedded.rows().min(start + ROWS_AT_ONCE);
            // Of the pieces before the last one, only the cache is of use.
            let end = if rows.end == embedded.rows() { vec![rows.len() - 1] } else { Vec::new() };
            let (count, piece) = (rows.len(), tensor::pick_rows(&pass.graph, &embedded, rows));
            let hidden = if context.positions == 0 {
                let (hidden, cache) = self.llm.prefill(&piece, &Segments::new(vec![count]), &end);
                context.cache = cache;
                hidden
            } else {
                let positions: Vec<usize> = (context.positions..context.positions + count).collect();
                self.llm.decode(&piece, &positions, &vec![0; count], &mut context.cache, Some(&end))
            };
            context.positions += count;
            last = Some(hidden);
        }
        last
    }
}
