//! Resident memory of processes, out of `/proc`.

use std::collections::HashMap;
use std::fs;

/// Resident memory of one process or of several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Resident now (`VmRSS`), bytes.
    pub rss_bytes: u64,
    /// Largest resident size so far (`VmHWM`), bytes.
    pub peak_rss_bytes: u64,
    /// How many processes were counted.
    pub processes: usize,
}

/// Bytes of this process that are resident now; `None` where there is no `/proc`.
pub fn rss_bytes() -> Option<u64> {
    status_of("self").map(|memory| memory.rss_bytes)
}

/// Largest resident size that this process ever had, bytes; `None` where there is no `/proc`.
pub fn peak_rss_bytes() -> Option<u64> {
    status_of("self").map(|memory| memory.peak_rss_bytes)
}

/// Memory of the process `root` and of all its descendants together.
///
/// Pages that processes share (libraries, mapped weights) count once in each of them, and the peaks need not have been
/// at the same time: both sums are upper bounds of what the machine held.
pub fn tree_memory(root: u32) -> Memory {
    let parents = parents_by_pid();
    let mut sum = Memory::default();
    for &pid in parents.keys().filter(|&&pid| descends_from(pid, root, &parents)) {
        let Some(memory) = status_of(&pid.to_string()) else { continue }; // it ended in the meantime
        sum.rss_bytes += memory.rss_bytes;
        sum.peak_rss_bytes += memory.peak_rss_bytes;
        sum.processes += 1;
    }
    sum
}

fn descends_from(pid: u32, root: u32, parents: &HashMap<u32, u32>) -> bool {
    let mut current = pid;
    // A pid that was reused while we read could close a ring: no real chain is longer than the table.
    for _ in 0..=parents.len() {
        if current == root {
            return true;
        }
        match parents.get(&current) {
            Some(&parent) => current = parent,
            None => return false,
        }
    }
    false
}

fn parents_by_pid() -> HashMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parent_in(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

/// The parent out of a `/proc/PID/stat` line. The command in it may hold blanks and brackets: read behind the last one.
fn parent_in(stat: &str) -> Option<u32> {
    stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn status_of(pid: &str) -> Option<Memory> {
    memory_in(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The two sizes out of a `/proc/PID/status`; a process without memory of its own (a zombie) has none.
fn memory_in(status: &str) -> Option<Memory> {
    let bytes_of = |field: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory { rss_bytes: bytes_of("VmRSS:")?, peak_rss_bytes: bytes_of("VmHWM:")?, processes: 1 })
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
        assert!(rss_bytes().expect("linux") <= after);
    }

    #[test]
    fn the_tree_counts_a_child() {
        let mut child = std::process::Command::new("sleep").arg("20").spawn().expect("sleep");
        let tree = tree_memory(std::process::id());
        let alone = tree_memory(child.id());
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(tree.processes >= 2, "{tree:?}");
        assert_eq!(alone.processes, 1);
        assert!(tree.rss_bytes > alone.rss_bytes);
    }

    #[test]
    fn fields_are_read_behind_odd_names() {
        assert_eq!(parent_in("12 (a) b) (c) S 7 12 12"), Some(7));
        assert_eq!(parent_in("12 (a"), None);
        assert_eq!(
            memory_in("Name:\tx\nVmHWM:\t  20 kB\nVmRSS:\t 8 kB\n").map(|m| m.peak_rss_bytes),
            Some(20480)
        );
        assert_eq!(memory_in("Name:\tx\n"), None);
        assert_eq!(memory_in("VmHWM:\t99999999999999999999 kB\nVmRSS: 1 kB\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_passed_over(
            text in "\\PC{0,60}", pid in any::<u32>(), parent in any::<u32>(), kib in any::<u64>()
        ) {
            let _ = (parent_in(&text), memory_in(&text));
            prop_assert_eq!(parent_in(&format!("{pid} ({text}) S {parent} 1 2")), Some(parent));
            let status = format!("Name:\t{text}\nVmHWM:\t{kib} kB\nVmRSS:\t1 kB\n");
            prop_assert_eq!(memory_in(&status).map(|memory| memory.peak_rss_bytes), kib.checked_mul(1024));
        }
    }
}
