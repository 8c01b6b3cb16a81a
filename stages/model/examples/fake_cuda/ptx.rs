//! What a module's PTX says of its kernels.

use std::collections::BTreeMap;

/// A kernel.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// The sizes of its parameters in bytes.
    pub(crate) parameters: Vec<usize>,
    /// The most threads of a block.
    pub(crate) threads: u32,
}

pub(crate) type Kernels = BTreeMap<String, Kernel>;

/// Reads the kernels of a module. `None` if it is not understood.
pub(crate) fn kernels(source: &str) -> Option<Kernels> {
    let mut all = Kernels::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix(".visible .entry ") else { continue };
        let parameters = lines.by_ref().take_while(|line| line.trim() != ")").map(size).collect::<Option<_>>()?;
        let threads = lines.next()?.strip_prefix(".maxntid ")?.split(',').next()?.parse().ok()?;
        all.insert(name.trim_end_matches('(').into(), Kernel { parameters, threads });
    }
    (!all.is_empty()).then_some(all)
}

/// The size of the parameter that a line declares: `.param .u64 p0,` or `.param .align 4 .b8 p6[32]`.
fn size(line: &str) -> Option<usize> {
    let line = line.trim().trim_end_matches(',');
    if let Some((_, length)) = line.split_once('[') {
        return line.contains(".b8 ").then(|| length.trim_end_matches(']').parse().ok())?;
    }
    let kind = line.strip_prefix(".param ")?.split_whitespace().next()?;
    let bits: usize = kind.trim_start_matches(['.', 'u', 's', 'b', 'f']).parse().ok()?;
    Some(bits / 8)
}
