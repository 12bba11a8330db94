//! Hosts on a network of their own: network namespaces of this machine and a switch between them. Nothing of the machine's
//! own network is touched. Takes root, `ip`, `nft` and `tc`.

use std::io::Write;
use std::process::{Command, Stdio};

/// Up until they are dropped. Host `k` has the address `10.77.0.k+1` on `lan`, and `10.78.0.k+1` on `other`, a network that
/// nothing is to listen on.
pub struct Hosts {
    count: usize,
}

/// What comes between a host and the others on `lan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing comes in or goes out.
    BothWays,
    /// Nothing goes out.
    Out,
    /// Nothing comes in.
    In,
    /// Every connection is reset, both ways.
    Reset,
    /// The cable is out.
    Link,
}

impl Hosts {
    pub fn start(count: usize) -> Self {
        let hosts = Self { count };
        ip(&format!("netns add {}", hosts.switch()));
        for network in ["lan", "other"] {
            ip(&format!("-n {} link add {network} type bridge", hosts.switch()));
            ip(&format!("-n {} link set {network} up", hosts.switch()));
        }
        for host in 0..count {
            let (name, switch) = (hosts.name(host), hosts.switch());
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            for (network, subnet) in [("lan", 77), ("other", 78)] {
                let port = format!("{network}{host}");
                ip(&format!("-n {name} link add {network} type veth peer name {port} netns {switch}"));
                ip(&format!("-n {switch} link set {port} master {network} up"));
                ip(&format!("-n {name} address add 10.{subnet}.0.{}/24 dev {network}", host + 1));
                ip(&format!("-n {name} link set {network} up"));
            }
        }
        hosts
    }

    fn switch(&self) -> String {
        format!("blip2-{}-switch", std::process::id())
    }

    fn name(&self, host: usize) -> String {
        format!("blip2-{}-{host}", std::process::id())
    }

    /// A host's address on `lan`.
    pub fn address(&self, host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// The command line that runs what stands behind it on a host.
    pub fn on(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.name(host)].map(str::to_owned).into()
    }

    /// Cuts a host off.
    pub fn cut(&self, host: usize, cut: Cut) {
        let (inwards, outwards) = match cut {
            Cut::BothWays => ("iifname lan drop", "oifname lan drop"),
            Cut::Out => ("", "oifname lan drop"),
            Cut::In => ("iifname lan drop", ""),
            Cut::Reset => (
                "iifname lan tcp dport 1-65535 reject with tcp reset",
                "oifname lan tcp dport 1-65535 reject with tcp reset",
            ),
            Cut::Link => return ip(&format!("-n {} link set lan down", self.name(host))),
        };
        self.filter(
            host,
            &format!(
                "table inet cut {{
                    chain in {{ type filter hook input priority 0; {inwards}; }}
                    chain out {{ type filter hook output priority 0; {outwards}; }}
                }}"
            ),
        );
    }

    /// Takes the cut away.
    pub fn mend(&self, host: usize, cut: Cut) {
        match cut {
            Cut::Link => ip(&format!("-n {} link set lan up", self.name(host))),
            _ => self.filter(host, "delete table inet cut"),
        }
    }

    /// Lets a host send no faster than `rate`, in the words of `tc`.
    pub fn slow_down(&self, host: usize, rate: &str) {
        let words = format!(
            "-n {} qdisc add dev lan root tbf rate {rate} burst 32kbit latency 400ms",
            self.name(host)
        );
        done(Command::new("tc").args(words.split(' ')), &words);
    }

    fn filter(&self, host: usize, rules: &str) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "nft: {rules}");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let names = (0..self.count).map(|host| self.name(host)).chain([self.switch()]);
        for name in names {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn ip(words: &str) {
    done(Command::new("ip").args(words.split(' ')), words);
}

fn done(command: &mut Command, words: &str) {
    assert!(command.status().unwrap().success(), "{:?} {words}", command.get_program());
}
