//! Whether training has diverged, and the error in that case. Independent of the model.

use super::held_out::Loss;
use crate::StageError;

/// The final loss is the mean over this many last steps.
pub(super) const LAST: usize = 20;

/// A loss this many times the worst of the steps before the [`LATEST`] is told. The worst, not the best: steps on other kinds of
/// records have other losses.
pub(super) const JUMP: f32 = 3.0;
/// The last steps are compared with those before them: in a climb, each would be the worst for the next.
pub(super) const LATEST: usize = 5;
/// Of fewer losses, the worst says little.
const LEAST_LOSSES: usize = 5;
/// Smaller differences are the noise of losses near zero.
const LEAST_JUMP: f32 = 0.5;
/// What to do after a divergence.
const REMEDY: &str =
    "try a smaller learning_rate, a larger warmup_ratio or a smaller max_grad_norm; the last checkpoint is kept";
/// Jumps that are told one by one.
pub(super) const MOST_WARNINGS: usize = 3;

/// The worst of the losses before the latest, if there are enough of them and `loss` is far above it.
pub(super) fn jump(loss: f32, losses: &[f32]) -> Option<f32> {
    let before = &losses[..losses.len().saturating_sub(LATEST)];
    let worst = before.iter().copied().reduce(f32::max)?;
    (before.len() >= LEAST_LOSSES && loss >= JUMP * worst && loss - worst >= LEAST_JUMP).then_some(worst)
}

/// Checks that a step gave finite numbers. The error describes them.
pub(super) fn check_step(loss: f32, norm: f32) -> Result<(), String> {
    if loss.is_finite() && norm.is_finite() {
        return Ok(());
    }
    Err(format!("the loss is {loss}, the norm of its gradient {norm}"))
}

/// Checks the mean of the last losses: more than twice `ln(vocab_size)`, the loss of a uniform guess, means divergence.
pub(super) fn check_mean(losses: &[f32], vocab_size: usize) -> Result<(), String> {
    let mean = losses.iter().sum::<f32>() / losses.len().max(1) as f32;
    if losses.len() == LAST && mean > 2.0 * (vocab_size as f32).ln() {
        return Err(format!("the loss of the last {LAST} steps is {mean:.1}, far worse than guessing"));
    }
    Ok(())
}

/// Checks the loss on the held-out records after `step`, which would never be the best if it is not finite, or always.
pub(super) fn check_held_out(step: usize, loss: &Loss) -> Result<(), StageError> {
    if loss.mean.is_finite() {
        return Ok(());
    }
    Err(StageError::failed(
        format!("training diverged in step {step}: the loss on the held-out records is {loss}"),
        format!(
            "{REMEDY}; if the loss of training itself is finite, look for a damaged image or answer among these records"
        ),
    ))
}

/// The error of training that diverged in `step`, on records with these `ids`.
pub(super) fn error<'a>(step: u64, what: &str, ids: impl Iterator<Item = &'a str>) -> StageError {
    let ids: Vec<&str> = ids.take(8).collect();
    StageError::failed(format!("training diverged in step {step}: {what} (records {}, ...)", ids.join(", ")), REMEDY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_far_above_the_worst_is_a_jump() {
        assert_eq!(jump(100.0, &[]), None, "there is nothing to compare with");
        assert_eq!(jump(100.0, &[2.0; LATEST + LEAST_LOSSES - 1]), None, "too few to compare with");
        let losses = [[3.0, 2.0, 4.0]; 4].concat();
        assert_eq!(jump(12.0, &losses), Some(4.0));
        assert_eq!(jump(11.9, &losses), None);
        assert_eq!(jump(0.4, &[0.01; LAST]), None, "noise near zero");
        assert_eq!(jump(0.6, &[0.01; LAST]), Some(0.01));
    }

    /// To guessing among 49,152 tokens, whose loss is 10.8: no step is far above the one before it.
    #[test]
    fn a_climb_is_a_jump() {
        let losses = [&[0.8; LAST][..], &[1.5, 2.6, 4.5, 7.0, 9.0, 10.5]].concat();
        let told = (LAST..losses.len()).find(|step| jump(losses[*step], &losses[step - LAST..*step]).is_some());
        assert_eq!(told, Some(LAST + 1));
    }

    #[test]
    fn only_a_spike_is_a_jump_where_two_kinds_of_records_take_turns() {
        let losses: Vec<f32> = (0..100).map(|step| if step % 4 == 3 { 6.0 } else { 0.2 }).collect();
        for step in 0..losses.len() {
            assert_eq!(jump(losses[step], &losses[step.saturating_sub(LAST)..step]), None, "step {step}");
        }
        assert_eq!(jump(18.0, &losses[losses.len() - LAST..]), Some(6.0));
    }
}
