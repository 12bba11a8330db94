//! How many workers one machine gets.

use std::fs;
use std::str::FromStr;

use crate::cores::cores;
use crate::environment;
use crate::error::LaunchError;

/// Where NVIDIA's driver lists its devices, one folder each.
const GPU_FOLDER: &str = "/proc/driver/nvidia/gpus";
/// More workers than this on one CPU machine only share its memory bandwidth.
const MAX_CPU_WORKERS: usize = 2;

/// The value of `--nproc-per-node`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nproc {
    /// One for each GPU; without GPUs two, or one on a single core.
    Auto,
    /// One for each GPU.
    Gpu,
    /// So many.
    Count(usize),
}

impl Nproc {
    /// The number of workers on this machine.
    ///
    /// # Errors
    /// [`LaunchError::Arguments`] for [`Nproc::Gpu`] on a machine where no GPU is visible.
    pub fn resolve(self) -> Result<usize, LaunchError> {
        self.on_machine(visible_gpus(), cores())
    }

    fn on_machine(self, gpus: usize, cores: usize) -> Result<usize, LaunchError> {
        match (self, gpus) {
            (Self::Count(count), _) => Ok(count),
            (Self::Gpu, 0) => Err(LaunchError::Arguments {
                detail: format!(
                    "--nproc-per-node gpu, but {GPU_FOLDER} and CUDA_VISIBLE_DEVICES show no GPU; use auto or a number"
                ),
            }),
            (Self::Auto, 0) => Ok(cores.clamp(1, MAX_CPU_WORKERS)),
            (Self::Auto | Self::Gpu, gpus) => Ok(gpus),
        }
    }
}

impl FromStr for Nproc {
    type Err = LaunchError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.parse::<usize>()) {
            ("auto", _) => Ok(Self::Auto),
            ("gpu", _) => Ok(Self::Gpu),
            (_, Ok(count)) if count > 0 => Ok(Self::Count(count)),
            _ => Err(LaunchError::Arguments {
                detail: format!("{text:?} is no number of workers; give 1 or more, auto or gpu"),
            }),
        }
    }
}

fn visible_gpus() -> usize {
    let present = fs::read_dir(GPU_FOLDER).map_or(0, |entries| entries.flatten().count());
    match environment::read("CUDA_VISIBLE_DEVICES") {
        Some(list) => present.min(listed_gpus(&list)),
        None => present,
    }
}

/// Devices in a `CUDA_VISIBLE_DEVICES` list; CUDA stops reading at the first entry that names none.
fn listed_gpus(list: &str) -> usize {
    list.split(',').map(str::trim).take_while(|entry| !entry.is_empty() && *entry != "-1").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_gpus_first_and_two_workers_on_a_cpu() {
        assert_eq!(Nproc::Auto.on_machine(8, 2).unwrap(), 8);
        assert_eq!(Nproc::Auto.on_machine(0, 64).unwrap(), 2);
        assert_eq!(Nproc::Auto.on_machine(0, 1).unwrap(), 1);
        assert_eq!(Nproc::Gpu.on_machine(4, 2).unwrap(), 4);
        assert_eq!(Nproc::Count(3).on_machine(8, 2).unwrap(), 3);
        assert!(Nproc::Gpu.on_machine(0, 64).unwrap_err().to_string().contains("no GPU"));
    }

    #[test]
    fn only_counts_and_the_two_words_are_read() {
        assert_eq!("auto".parse::<Nproc>().unwrap(), Nproc::Auto);
        assert_eq!("gpu".parse::<Nproc>().unwrap(), Nproc::Gpu);
        assert_eq!("16".parse::<Nproc>().unwrap(), Nproc::Count(16));
        for refused in ["0", "-1", "", "cpu", "2.0"] {
            assert!(refused.parse::<Nproc>().is_err(), "{refused:?}");
        }
    }

    #[test]
    fn hidden_devices_do_not_count() {
        assert_eq!(listed_gpus("0,1,5"), 3);
        assert_eq!(listed_gpus("GPU-8932f937, GPU-3b1c"), 2);
        assert_eq!(listed_gpus("0,-1,1"), 1);
        assert_eq!(listed_gpus("-1"), 0);
        assert_eq!(listed_gpus(""), 0);
    }
}
