//! Memory of another process.

use std::{fs, process::Child, thread, time::Duration};

/// Waits for a child to end, and gives the most memory that it was seen to hold, in MiB; NaN where
/// the system does not tell.
///
/// Its output must not be more than what a pipe takes, some kilobytes.
pub fn watch(child: &mut Child) -> anyhow::Result<f64> {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = f64::NAN;
    while child.try_wait()?.is_none() {
        // The kernel keeps the highest value, so what is read last counts.
        if let Some(mib) = fs::read_to_string(&status).ok().as_deref().and_then(high_water_mark) {
            peak = mib;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(peak)
}

fn high_water_mark(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mebibytes() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"), Some(2.0));
        assert_eq!(high_water_mark("Name:\tx\n"), None);
    }
}
