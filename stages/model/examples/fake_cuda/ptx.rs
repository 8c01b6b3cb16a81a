//! What a module's PTX says of its kernels.

use std::collections::BTreeMap;

/// The sizes of a kernel's parameters in bytes.
pub(crate) type Kernels = BTreeMap<String, Vec<usize>>;

/// Reads the kernels of a module. `None` if it is not understood.
pub(crate) fn kernels(source: &str) -> Option<Kernels> {
    let mut all = Kernels::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix(".visible .entry ") else { continue };
        let parameters = lines.by_ref().take_while(|line| line.trim() != ")").map(size);
        all.insert(name.trim_end_matches('(').into(), parameters.collect::<Option<_>>()?);
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
