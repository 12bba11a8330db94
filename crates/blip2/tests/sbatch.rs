//! The batch script for SLURM, with a fake `srun`: what becomes of a job.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[expect(dead_code, reason = "made for other tests too")]
mod place;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use place::Place;

const SBATCH: &str = "deploy/slurm/train.sbatch";

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What SLURM tells a batch script.
const JOB: [(&str, &str); 3] =
    [("SLURM_JOB_ID", "7"), ("SLURM_JOB_NODELIST", "n1"), ("SLURM_SUBMIT_DIR", "/nowhere")];

/// The batch script in a folder.
fn job(place: &Place, args: &[&str]) -> Command {
    let mut job = Command::new("/bin/bash");
    job.arg(checkout(SBATCH)).args(args).current_dir(place.path("")).env("FAKE_DIR", place.path(""));
    job.env("PATH", format!("{}:/usr/bin:/bin", place.path("").display()));
    job.env("BLIP2", place.path("blip2")).envs(JOB);
    job
}

fn program(place: &Place, name: &str, script: &str) {
    fs::write(place.path(name), script).unwrap();
    fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The batch script with a fake `srun`, which leaves its options out, and a fake `scontrol`: exit code and log.
fn submit(args: &[&str], worker_ends_with: i32) -> (Option<i32>, String) {
    let place = Place::with_worker();
    for (name, script) in [
        ("srun", "while [ \"${1#--}\" != \"$1\" ]; do shift; done; exec \"$@\""),
        ("scontrol", "echo \"scontrol $*\""),
    ] {
        program(&place, name, &format!("#!/bin/sh\n{script}\n"));
    }
    let output = job(&place, args).env("FAKE_EXIT", worker_ends_with.to_string()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_job_that_stopped_with_a_checkpoint_goes_back_into_the_queue_and_no_other() {
    let args = ["config.toml", "--nproc-per-node", "1", "--max-restarts", "0"];
    for ends_with in [0, 75, 78, 93] {
        let (code, log) = submit(&args, ends_with);
        assert_eq!(code, Some(ends_with), "{log}");
        assert_eq!(log.contains("scontrol requeue 7\n"), ends_with == 75, "{log}");
    }
    let (code, log) = submit(&[], 0);
    assert!(code == Some(78) && log.contains("name the config"), "{log}");
}

#[test]
fn a_job_that_was_cancelled_stays_out_of_the_queue() {
    for (state, comes_back) in [
        ("JobState=RUNNING Reason=None", true),
        ("JobState=COMPLETING Reason=TimeLimit", true),
        ("JobState=COMPLETING Reason=None", false),
    ] {
        let place = Place::with_worker();
        program(&place, "srun", "#!/bin/sh\nexit 75\n");
        let scontrol = format!(
            "#!/bin/sh\nif [ $1 = show ]; then echo 'JobId=7\n   {state} Dep='; else touch $FAKE_DIR/back; fi\n"
        );
        program(&place, "scontrol", &scontrol);
        assert_eq!(job(&place, &["config.toml"]).output().unwrap().status.code(), Some(75));
        assert_eq!(place.path("back").exists(), comes_back, "{state}");
    }
}

#[test]
fn a_job_that_gets_sigterm_has_time_for_a_checkpoint() {
    let place = Place::with_worker();
    // srun hands SIGUSR1 on, and answers SIGTERM by killing its tasks.
    let srun = "#!/bin/bash\nwhile [ \"${1#--}\" != \"$1\" ]; do shift; done\n\"$@\" & task=$!\n\
                trap 'kill -KILL $task' TERM\ntrap 'kill -USR1 $task' USR1\n\
                while kill -0 $task 2>/dev/null; do wait $task; code=$?; done\nexit $code\n";
    for (name, script) in [("srun", srun), ("scontrol", "#!/bin/sh\ntouch \"$FAKE_DIR/requeued\"\n")] {
        program(&place, name, script);
    }
    let mut job =
        job(&place, &["config.toml", "--nproc-per-node", "2"]).env("FAKE_WAIT", "1").spawn().unwrap();
    let start = Instant::now();
    while !place.path("training").exists() && start.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(10));
    }
    let id = job.id().to_string();
    assert!(Command::new("/bin/kill").args(["-s", "TERM", &id]).status().unwrap().success());
    assert_eq!((job.wait().unwrap().code(), place.path("requeued").exists()), (Some(75), true));
    assert_eq!(place.asked().len(), 3, "the run folder, and two ranks");
}
