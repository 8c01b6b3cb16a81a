//! The memory of this process, if the system reports it. Independent of who asks.

/// Resident bytes now.
pub fn resident() -> Option<u64> {
    status("VmRSS:")
}

/// Peak resident bytes.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
