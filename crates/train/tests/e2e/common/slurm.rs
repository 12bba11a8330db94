//! A SLURM of three virtual nodes on this machine: its daemons with a configuration, a key and ports of their own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{TinyWorld, blip2};

/// Addresses of the loopback interface are names that every program finds.
const NODES: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
/// Debian's daemons lie where not every user looks.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
const PATIENCE: Duration = Duration::from_secs(90);

/// Up until it is dropped; then jobs and daemons end.
pub struct Slurm {
    dir: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    /// With `preempt_send_user_signal`, where jobs are warned by the signal that they name before they are preempted, or
    /// without.
    pub fn start(warns: bool) -> Self {
        let mut slurm = Self { dir: tempfile::tempdir().unwrap(), daemons: Vec::new() };
        fs::create_dir(slurm.path("state")).unwrap();
        fs::write(
            slurm.path("munge.key"),
            blake3::hash(slurm.path("").as_os_str().as_encoded_bytes()).to_hex().as_bytes(),
        )
        .unwrap();
        fs::set_permissions(slurm.path("munge.key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(slurm.path("slurm.conf"), slurm.configuration(warns)).unwrap();
        // 22.05 looks for control groups although nothing here uses them.
        fs::write(slurm.path("cgroup.conf"), "CgroupPlugin=cgroup/v1\n").unwrap();
        let files =
            ["key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "seed-file=munge.seed"];
        let munge: Vec<String> = files.map(|file| format!("--{file}")).into();
        slurm
            .daemon("munged", &munge.iter().map(String::as_str).chain(["-F", "--force"]).collect::<Vec<_>>());
        wait("munged", || slurm.path("munge.socket").exists());
        slurm.daemon("slurmctld", &["-D"]);
        NODES.iter().for_each(|node| slurm.daemon("slurmd", &["-D", "-N", node]));
        wait("three idle nodes", || {
            slurm.ask("sinfo", &["-h", "-N", "-o", "%T"]).matches("idle").count() >= 3
        });
        slurm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn configuration(&self, warns: bool) -> String {
        let parameters = if warns { "SlurmctldParameters=preempt_send_user_signal\n" } else { "" };
        let host = nix::unistd::gethostname().unwrap();
        // Held together, so that they differ.
        let ports: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = ports.iter().map(|port| port.local_addr().unwrap().port()).collect();
        let nodes: Vec<String> = NODES
            .iter()
            .zip(&ports[1..])
            .map(|(node, port)| format!("NodeName={node} NodeAddr={node} Port={port} CPUs=1"))
            .collect();
        format!(
            "ClusterName=test\nSlurmctldHost={}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={dir}/munge.socket\nStateSaveLocation={dir}/state\n\
             SlurmctldPidFile={dir}/slurmctld.pid\nSlurmdPidFile={dir}/slurmd-%n.pid\nSlurmdSpoolDir={dir}/spool-%n\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nMpiDefault=none\nSelectType=select/linear\n\
             SlurmdParameters=config_overrides\n{parameters}\
             SchedulerParameters=sched_interval=2\nPreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n{}\n\
             PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30\n\
             PartitionName=high Nodes=ALL PriorityTier=2\n",
            host.to_string_lossy(),
            ports[0],
            nodes.join("\n"),
            dir = self.dir.path().display(),
        )
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("env");
        command.arg(format!("PATH={SEARCH_PATH}")).arg(program);
        command.env("SLURM_CONF", self.path("slurm.conf")).stdin(Stdio::null());
        command
    }

    fn daemon(&mut self, program: &str, args: &[&str]) {
        let log = fs::File::create(self.path(&format!("{program}-{}.log", self.daemons.len()))).unwrap();
        let mut command = self.command(program);
        command.args(args).current_dir(self.dir.path());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push(command.spawn().unwrap());
    }

    /// What a client program of SLURM answers.
    pub fn ask(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// Our batch script on two nodes with a worker each; `args` go to the launcher.
    pub fn submit(&self, world: &TinyWorld, args: &[&str]) -> Job<'_> {
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/slurm/train.sbatch");
        let mut command = self.command("sbatch");
        command.args(["--parsable", "--nodes=2", "--output=job-%j.log"]).arg(script);
        command.args(args).args(["--nproc-per-node", "1"]).current_dir(world.path(""));
        command.env("BLIP2", blip2().get_program()).env("OMP_NUM_THREADS", "1");
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "sbatch: {said}{}", String::from_utf8_lossy(&output.stderr));
        let id = said.trim().to_owned();
        Job { log: world.path(&format!("job-{id}.log")), slurm: self, id }
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.ask("scancel", &["--user=root"]);
        // Steps outlive the daemon that started them.
        let started = Instant::now();
        while !self.ask("squeue", &["-h"]).trim().is_empty() && started.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(100));
        }
        for daemon in self.daemons.iter_mut().rev() {
            let _ = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
            let _ = daemon.wait();
        }
    }
}

/// A job in the queue, on nodes, or over.
pub struct Job<'a> {
    slurm: &'a Slurm,
    pub id: String,
    log: PathBuf,
}

impl Job<'_> {
    /// `Restarts`, `JobState` and so on.
    pub fn field(&self, name: &str) -> String {
        let said = self.slurm.ask("scontrol", &["show", "job", &self.id]);
        let field = said.split_whitespace().find_map(|field| field.strip_prefix(&format!("{name}=")));
        field.unwrap_or_else(|| panic!("no {name} in {said}")).to_owned()
    }

    /// What the batch script and rank 0's launcher said, over all starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn wait_for(&self, what: &str, look: impl Fn() -> bool) {
        let started = Instant::now();
        while !look() {
            let (state, log) = (self.field("JobState"), self.log());
            assert!(started.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}; job {state}: {log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_for_state(&self, state: &str) {
        self.wait_for(state, || self.field("JobState") == state);
    }

    /// A job that was put back would wait for two minutes.
    pub fn start_now(&self) {
        self.slurm.ask("scontrol", &["update", &format!("JobId={}", self.id), "StartTime=now"]);
    }
}

fn wait(what: &str, look: impl Fn() -> bool) {
    let started = Instant::now();
    while !look() {
        assert!(started.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
