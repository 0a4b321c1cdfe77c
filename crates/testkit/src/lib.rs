//! What the tests of all crates share: whether what they need is there, where they keep what is expensive to make, and
//! mounts that go with their test.
//!
//! A test that needs more than the compiler says what with a word: `root`, `btrfs`, `qemu`, `image`, `tftp`, `openssl`,
//! or the name of a program. Where it is missing, the test is skipped with a line that says so; or it fails, when the
//! comma-separated list in `BBOT_REQUIRE` has the word. `test.sh` sets that list after it has installed everything.
//! What is wrong panics here: a test is all that ever calls it.

pub mod guest;
mod mount;

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use mount::Mount;

/// Whether `BBOT_REQUIRE` has the word.
#[must_use]
pub fn is_required(word: &str) -> bool {
    lists(&env::var("BBOT_REQUIRE").unwrap_or_default(), word)
}

fn lists(list: &str, word: &str) -> bool {
    list.split(',').any(|listed| listed.trim() == word)
}

/// Says that a test is skipped, and why.
///
/// # Panics
/// When `BBOT_REQUIRE` has the word.
#[track_caller]
pub fn missing(word: &str, why: &str) {
    say_missing(is_required(word), word, why);
}

#[track_caller]
fn say_missing(is_required: bool, word: &str, why: &str) {
    assert!(
        !is_required,
        "BBOT_REQUIRE names {word}, but: {why} (test.sh installs what the tests need)"
    );
    println!("skipped: {why}");
}

/// Whether a test that needs what the word stands for can run; `there` is given back.
///
/// # Panics
/// When it is not there and `BBOT_REQUIRE` has the word.
#[must_use]
#[track_caller]
pub fn require(word: &str, there: bool) -> bool {
    if !there {
        missing(word, &format!("no {word}"));
    }
    there
}

/// Whether the program can be run by its name; `word` is what requires it, often its own name.
///
/// # Panics
/// When it is not there and `BBOT_REQUIRE` has the word.
#[must_use]
#[track_caller]
pub fn program(name: &str, word: &str) -> bool {
    let there = is_installed(name);
    if !there {
        missing(word, &format!("no program {name}"));
    }
    there
}

/// Whether the program is on the path, or in a directory for the system's own programs, which an ordinary user's path
/// often lacks.
fn is_installed(name: &str) -> bool {
    let is_program = |path: PathBuf| {
        fs::metadata(path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| is_program(directory.join(name)))
}

/// Whether the test runs as root.
///
/// # Panics
/// When it does not and `BBOT_REQUIRE` names `root`.
#[must_use]
#[track_caller]
pub fn root() -> bool {
    // A process's directory belongs to its effective user.
    let is_root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    require("root", is_root)
}

/// Whether a btrfs can be made and mounted: by root, with `mkfs.btrfs`, by this kernel.
///
/// # Panics
/// When it cannot and `BBOT_REQUIRE` names `btrfs` (or `root`, which it needs).
#[must_use]
#[track_caller]
pub fn btrfs() -> bool {
    root()
        && program("mkfs.btrfs", "btrfs")
        && require("btrfs", {
            // Mounting loads the module; where it is none, the list alone tells.
            fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("btrfs"))
                || Command::new("modprobe")
                    .arg("btrfs")
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success())
        })
}

/// Where expensive results are kept between runs: `BBOT_TEST_CACHE`, else `bbot-test-cache` in the temporary directory.
/// It may not exist yet.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("BBOT_TEST_CACHE")
        .map_or_else(|| env::temp_dir().join("bbot-test-cache"), PathBuf::from)
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be run or fails; with what it has said.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The path as text: those of tests are.
///
/// # Panics
/// When it is not UTF-8.
#[must_use]
#[track_caller]
pub fn text(path: &Path) -> &str {
    path.to_str()
        .unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_and_may_have_blanks_around_them() {
        let list = "image,qemu, root";
        assert!(lists(list, "image") && lists(list, "root"));
        assert!(!lists(list, "roo") && !lists(list, "btrfs"));
        assert!(!lists("", "root"));
    }

    #[test]
    fn what_is_there_is_never_missed() {
        assert!(require("a word that nobody lists", true));
        assert!(!require("a word that nobody lists", false));
        assert!(program("sh", "sh"));
        assert!(!program("no-such-program", "a word that nobody lists"));
    }

    #[test]
    #[should_panic(expected = "BBOT_REQUIRE names qemu, but: no program qemu-system-x86_64")]
    fn what_is_required_and_missing_fails() {
        say_missing(true, "qemu", "no program qemu-system-x86_64");
    }

    #[test]
    #[should_panic(expected = "no such thing")]
    fn a_command_that_fails_is_shown_with_its_words() {
        run("sh", &["-c", "echo no such thing >&2; exit 3"]);
    }
}
