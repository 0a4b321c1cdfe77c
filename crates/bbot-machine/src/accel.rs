//! How a guest's instructions are run: by the processor (KVM) or by translation (TCG).
//!
//! Whether KVM works is found out by trying, not by looking: there are hosts
//! (virtual machines themselves, mostly) where `/dev/kvm` opens and even the
//! firmware runs, but where no Linux kernel ever comes up. So a kernel is booted
//! under KVM, without a disk: with nothing to mount it panics, restarts at once,
//! and QEMU ends. That takes a second where KVM works.
//!
//! The kernel is the machine's own where it has one, else the host's. Where there
//! is neither, KVM is trusted on bare metal and not on a virtual host.
//!
//! What came out holds for this boot of the host and this QEMU, and is kept in a
//! file, so that the price is paid once.

mod trial;

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::json;

use crate::machine::Error;
use crate::qemu::Qemu;
use crate::qemu::process::Credentials;
use trial::Verdict;

/// What the operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// KVM where a guest really runs under it, else TCG.
    #[default]
    Auto,
    /// KVM, whatever a trial would say.
    Kvm,
    /// TCG.
    Tcg,
}

/// What a machine runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualization.
    Kvm,
    /// QEMU's translator: runs everywhere, several times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A word that is none of the choices.
#[derive(Debug, thiserror::Error)]
#[error("invalid accelerator '{0}': it is one of auto, kvm, tcg")]
pub struct UnknownChoice(String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(s: &str) -> Result<Self, UnknownChoice> {
        match s {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(UnknownChoice(s.to_owned())),
        }
    }
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// What machines are to run with.
    pub accelerator: Accelerator,
    /// One sentence for people.
    pub reason: String,
}

/// For what the choice is made.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// The QEMU that machines run in.
    pub qemu: &'a Qemu,
    /// The user that QEMU runs as when the agent is root, as in
    /// [`crate::machine::StartSpec::user`].
    pub user: Option<&'a str>,
    /// A folder in which the outcome is kept. It is made if it is not there.
    pub state_dir: &'a Path,
}

/// Chooses how machines run, and logs in one line what and why.
///
/// `machine` is the directory of a machine whose `kernel` can be tried. A trial
/// takes about a second where KVM works and up to ten where it does not; its
/// outcome is remembered until the host boots again or has another QEMU.
///
/// # Errors
///
/// When QEMU is not installed, or its user cannot be found.
pub async fn choose(
    choice: Choice,
    machine: Option<&Path>,
    host: Host<'_>,
) -> Result<Chosen, Error> {
    let chosen = match choice {
        Choice::Kvm => Chosen {
            accelerator: Accelerator::Kvm,
            reason: "it was asked for".to_owned(),
        },
        Choice::Tcg => Chosen {
            accelerator: Accelerator::Tcg,
            reason: "it was asked for".to_owned(),
        },
        Choice::Auto => find(machine, host).await?,
    };
    let Chosen {
        accelerator,
        reason,
    } = &chosen;
    tracing::info!(%accelerator, "machines run with {accelerator}: {reason}");
    Ok(chosen)
}

async fn find(machine: Option<&Path>, host: Host<'_>) -> Result<Chosen, Error> {
    host.qemu.require_installed()?;
    let credentials = Credentials::find(host.user).map_err(|source| Error::Io {
        what: "run QEMU without the rights of root".to_owned(),
        source,
    })?;
    if !Path::new("/dev/kvm").exists() {
        return Ok(Chosen {
            accelerator: Accelerator::Tcg,
            reason: "there is no /dev/kvm".to_owned(),
        });
    }
    let key = Key {
        boot: read_line(Path::new("/proc/sys/kernel/random/boot_id")),
        qemu: trial::version(host.qemu).await?,
        user: credentials.as_ref().map(|credentials| credentials.uid),
    };
    let file = host.state_dir.join("accelerator.json");
    if let Some(known) = recall(&file, &key) {
        return Ok(known);
    }
    let kernel = machine
        .map(|machine| machine.join("kernel"))
        .filter(|kernel| kernel.is_file())
        .or_else(host_kernel);
    let Some(kernel) = kernel else {
        // Not remembered: the next machine may have a kernel to try.
        return Ok(untried(
            &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
        ));
    };
    let verdict = trial::boot(host.qemu, &kernel, credentials).await?;
    let chosen = judge(&verdict, &kernel);
    if let Err(error) = remember(&file, &key, &chosen) {
        tracing::warn!(
            "unable to remember in {} whether KVM works, so it will be tried again: {error}",
            file.display()
        );
    }
    Ok(chosen)
}

/// What to make of a trial.
fn judge(verdict: &Verdict, kernel: &Path) -> Chosen {
    let kernel = kernel.display();
    match verdict {
        Verdict::Boots { seconds } => Chosen {
            accelerator: Accelerator::Kvm,
            reason: format!("{kernel} came up under KVM within {seconds:.1} s"),
        },
        Verdict::Silent { seconds } => Chosen {
            accelerator: Accelerator::Tcg,
            reason: format!("{kernel} did not come up under KVM within {seconds:.0} s"),
        },
        Verdict::Fails { detail } => Chosen {
            accelerator: Accelerator::Tcg,
            reason: format!("KVM does not work here: {detail}"),
        },
    }
}

/// What to make of a host where nothing can be tried.
fn untried(cpuinfo: &str) -> Chosen {
    let is_virtual = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "hypervisor")
        });
    if is_virtual {
        Chosen {
            accelerator: Accelerator::Tcg,
            reason: "this host is itself virtual, and there is no kernel to try whether KVM works \
                     (ask for kvm if it does)"
                .to_owned(),
        }
    } else {
        Chosen {
            accelerator: Accelerator::Kvm,
            reason: "/dev/kvm is there (untried: there is no kernel to try it with)".to_owned(),
        }
    }
}

/// The newest kernel of the host that can be read.
fn host_kernel() -> Option<PathBuf> {
    let mut kernels: Vec<PathBuf> = std::fs::read_dir("/boot")
        .ok()?
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"vmlinuz-")
        })
        .map(|entry| entry.path())
        .filter(|path| std::fs::File::open(path).is_ok())
        .collect();
    kernels.sort();
    kernels.pop()
}

fn read_line(path: &Path) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// For what an outcome holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    boot: String,
    qemu: String,
    user: Option<u32>,
}

impl Key {
    fn to_json(&self) -> serde_json::Value {
        json!({ "boot": self.boot, "qemu": self.qemu, "user": self.user })
    }
}

/// An outcome that holds still. Whatever is wrong with the file, the trial is
/// made again.
fn recall(file: &Path, key: &Key) -> Option<Chosen> {
    let text = std::fs::read(file).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
    if *value.get("holds-for")? != key.to_json() {
        return None;
    }
    let accelerator = match value.get("accelerator")?.as_str()? {
        "kvm" => Accelerator::Kvm,
        "tcg" => Accelerator::Tcg,
        _ => return None,
    };
    let reason = value.get("reason")?.as_str()?;
    Some(Chosen {
        accelerator,
        reason: format!("{reason} (tried earlier)"),
    })
}

fn remember(file: &Path, key: &Key, chosen: &Chosen) -> std::io::Result<()> {
    let value = json!({
        "holds-for": key.to_json(),
        "accelerator": chosen.accelerator.to_string(),
        "reason": chosen.reason,
    });
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Whole or not at all, whoever else does the same.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    writeln!(temporary, "{value:#}")?;
    temporary.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            boot: "b".to_owned(),
            qemu: "7.2".to_owned(),
            user: Some(65534),
        }
    }

    #[test]
    fn an_outcome_is_kept_for_its_boot_qemu_and_user() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/accelerator.json");
        assert_eq!(recall(&file, &key()), None);
        let chosen = Chosen {
            accelerator: Accelerator::Kvm,
            reason: "it came up".to_owned(),
        };
        remember(&file, &key(), &chosen).unwrap();
        let known = recall(&file, &key()).unwrap();
        assert_eq!(known.accelerator, Accelerator::Kvm);
        assert!(known.reason.starts_with("it came up"), "{}", known.reason);
        for other in [
            Key {
                boot: "c".to_owned(),
                ..key()
            },
            Key {
                qemu: "8.0".to_owned(),
                ..key()
            },
            Key {
                user: None,
                ..key()
            },
        ] {
            assert_eq!(recall(&file, &other), None, "{other:?}");
        }
        for broken in ["", "{", "[]", "{\"holds-for\": 1}"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(recall(&file, &key()), None, "{broken}");
        }
    }

    #[test]
    fn a_host_without_a_kernel_to_try() {
        let bare = "processor : 0\nflags\t\t: fpu vmx\n";
        let nested = "processor : 0\nflags\t\t: fpu vmx hypervisor\n";
        assert_eq!(untried(bare).accelerator, Accelerator::Kvm);
        assert_eq!(untried(nested).accelerator, Accelerator::Tcg);
    }

    #[test]
    fn trials_are_judged() {
        let kernel = Path::new("/k");
        let cases = [
            (
                Verdict::Boots { seconds: 0.8 },
                Accelerator::Kvm,
                "within 0.8 s",
            ),
            (
                Verdict::Silent { seconds: 10.0 },
                Accelerator::Tcg,
                "within 10 s",
            ),
            (
                Verdict::Fails {
                    detail: "no".to_owned(),
                },
                Accelerator::Tcg,
                "no",
            ),
        ];
        for (verdict, accelerator, word) in cases {
            let chosen = judge(&verdict, kernel);
            assert_eq!(chosen.accelerator, accelerator, "{verdict:?}");
            assert!(chosen.reason.contains(word), "{}", chosen.reason);
        }
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Kvm, Choice::Tcg] {
            assert_eq!(choice.to_string().parse::<Choice>().unwrap(), choice);
        }
        assert!(
            "xen"
                .parse::<Choice>()
                .unwrap_err()
                .to_string()
                .contains("auto, kvm, tcg")
        );
    }
}
