//! `blip2 ckpt`: what a run has saved, and whether it is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use checkpoint::{Listed, Manifest};
use launch::Exit;

use crate::error::CommandError;

/// One line a checkpoint, oldest first within each stage; `best` marks the pinned one.
pub fn list(run_dir: &Path) -> Result<ExitCode, CommandError> {
    for stage in stages(run_dir)? {
        let best = checkpoint::pinned(&stage.dir)?.map(|listed| listed.step);
        for Listed { step, path } in stage.checkpoints {
            let size = match Manifest::read(&path) {
                Ok(manifest) => {
                    let bytes: u64 = manifest.files.values().map(|file| file.bytes).sum();
                    format!("{:.1} MB", bytes as f64 / 1e6)
                }
                Err(error) => format!("damaged: {error}"),
            };
            let mark = if best == Some(step) { "  best" } else { "" };
            println!("{}  step {step}  {size}  {}{mark}", stage.name, path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line a checkpoint; [`Exit::Config`] when one is not whole.
pub fn verify(run_dir: &Path) -> Result<ExitCode, CommandError> {
    let mut damaged = 0;
    let mut whole = 0;
    for stage in stages(run_dir)? {
        for Listed { step, path } in stage.checkpoints {
            match checkpoint::verify(&path) {
                Ok(manifest) if manifest.step == step => {
                    whole += 1;
                    println!("{}  step {step}  whole", stage.name);
                }
                Ok(manifest) => {
                    damaged += 1;
                    println!(
                        "{}  step {step}  DAMAGED: {}: the manifest says step {}",
                        stage.name,
                        path.display(),
                        manifest.step
                    );
                }
                Err(error) => {
                    damaged += 1;
                    println!("{}  step {step}  DAMAGED: {}", stage.name, launch::with_causes(&error));
                }
            }
        }
    }
    println!("{whole} whole, {damaged} damaged");
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { Exit::Config.into() })
}

/// The checkpoints of one stage of a run.
struct StageCheckpoints {
    name: String,
    dir: PathBuf,
    checkpoints: Vec<Listed>,
}

/// The stages of a run that have saved something, by name; refuses a folder without any.
fn stages(run_dir: &Path) -> Result<Vec<StageCheckpoints>, CommandError> {
    let parent = run_dir.join("checkpoints");
    let refuse = |detail: String| CommandError::NoRun { path: run_dir.to_owned(), detail };
    let entries = fs::read_dir(&parent)
        .map_err(|error| refuse(format!("{} cannot be read: {error}", parent.display())))?;
    let mut dirs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    dirs.sort();
    let mut stages = Vec::new();
    for dir in dirs {
        let checkpoints = checkpoint::list(&dir)?;
        if !checkpoints.is_empty() {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            stages.push(StageCheckpoints { name, dir, checkpoints });
        }
    }
    match stages.is_empty() {
        true => Err(refuse(format!("no checkpoint has been written below {} yet", parent.display()))),
        false => Ok(stages),
    }
}
