//! Resident memory of this process, out of `/proc`.

use std::fs;

/// Largest resident size that this process ever had (`VmHWM`), bytes; `None` where there is no `/proc`.
pub fn peak_rss_bytes() -> Option<u64> {
    peak_in(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The peak out of a `/proc/PID/status`; a process without memory of its own (a zombie) has none.
fn peak_in(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_peak_covers_a_block_that_was_freed() {
        let before = peak_rss_bytes().expect("linux");
        let block = vec![1u8; 64 << 20];
        let sum: u64 = block.iter().step_by(4096).map(|&byte| u64::from(byte)).sum();
        drop(block);
        assert_eq!(sum, (64 << 20) / 4096);
        let after = peak_rss_bytes().expect("linux");
        assert!(after >= before.max(64 << 20), "{before} -> {after}");
    }

    #[test]
    fn a_field_is_read_or_there_is_none() {
        assert_eq!(peak_in("Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t 8 kB\n"), Some(20480));
        assert_eq!(peak_in("Name:\tx\n"), None);
        assert_eq!(peak_in("VmHWM:\t99999999999999999999 kB\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_passed_over(text in "\\PC{0,60}", kib in any::<u64>()) {
            let _ = peak_in(&text);
            let status = format!("Name:\t{text}\nVmHWM:\t{kib} kB\nVmRSS:\t1 kB\n");
            prop_assert_eq!(peak_in(&status), kib.checked_mul(1024));
        }
    }
}
