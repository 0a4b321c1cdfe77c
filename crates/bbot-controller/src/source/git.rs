//! Fetching a commit: the `git` program as an unprivileged child, on a short leash.
//!
//! https only, no redirects, no submodules, no hooks, no prompts, nothing of the user's or the system's
//! configuration; a private or loopback address is refused unless that is allowed, and the address that was looked
//! at is the one that is connected to. Time and size are bounded. What comes out is an archive by its hash.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bbot_source::LeftOut;
use tokio::process::Command;

use super::Git;
use super::pack::{self, PackError};
use super::reach::{Target, resolve, target};
use crate::room;

pub use super::reach::Addresses;

/// How a fetch is bounded, and who does it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest time of the whole fetch.
    pub time: Duration,
    /// Most bytes on disk, and most bytes of the tree.
    pub bytes: u64,
    /// Whether private and loopback addresses may be connected to.
    pub addresses: Addresses,
    /// User and group that `git` runs as; needs root.
    pub user: Option<(u32, u32)>,
}

/// A commit could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// The URL is not one to fetch from.
    #[error("cannot fetch {url}: {what}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The commit is not one.
    #[error("{0:?} is not a commit: give its full hash, 40 or 64 lower-case hex digits")]
    Commit(String),
    /// git failed.
    #[error("git cannot {doing} {url}: {output}")]
    Failed {
        /// What it was to do.
        doing: &'static str,
        /// The repository.
        url: String,
        /// The end of what it said.
        output: String,
    },
    /// It took too long.
    #[error("fetching {url} took longer than {seconds} seconds")]
    TimedOut {
        /// The repository.
        url: String,
        /// The bound.
        seconds: u64,
    },
    /// It was too large.
    #[error("{url} at this commit is larger than {limit} bytes")]
    TooLarge {
        /// The repository.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// The tree could not be packed.
    #[error("cannot pack {url}: {what}")]
    Pack {
        /// The repository.
        url: String,
        /// Why not.
        what: String,
    },
    /// Something of this computer failed.
    #[error("cannot {doing}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl GitError {
    /// Whether the fault is this computer's, not the request's.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

/// A commit as an archive.
#[derive(Debug)]
pub struct Fetched {
    /// The archive, in a file without a name.
    pub file: std::fs::File,
    /// Its SHA-256.
    pub sha256: String,
}

/// Fetches the commit and makes an archive of it.
///
/// # Errors
/// See [`GitError`].
pub async fn fetch(git: &Git, limits: &Limits) -> Result<Fetched, GitError> {
    let commit = &git.commit;
    if !matches!(commit.len(), 40 | 64)
        || !commit
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(GitError::Commit(commit.clone()));
    }
    let bad_url = |what| GitError::Url {
        url: git.url.clone(),
        what,
    };
    let target = target(&git.url).map_err(bad_url)?;
    let work = async {
        let address = resolve(&target, limits.addresses).await.map_err(bad_url)?;
        fetch_from(git, &target, address, limits).await
    };
    match tokio::time::timeout(limits.time, work).await {
        Ok(result) => result,
        Err(_) => Err(GitError::TimedOut {
            url: git.url.clone(),
            seconds: limits.time.as_secs(),
        }),
    }
}

async fn fetch_from(
    git: &Git,
    target: &Target,
    address: IpAddr,
    limits: &Limits,
) -> Result<Fetched, GitError> {
    let io = |doing| move |source| GitError::Io { doing, source };
    let directory = tempfile::Builder::new()
        .prefix("bbot-git-")
        .tempdir()
        .map_err(io("make a temporary directory"))?;
    if let Some((uid, gid)) = limits.user {
        std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid))
            .map_err(io("hand over a temporary directory"))?;
    }
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))
        .map_err(io("close a temporary directory"))?;

    let child = Child {
        git,
        directory: directory.path(),
        target,
        address,
        limits,
    };
    child
        .run("prepare for", &["init", "--quiet", "--bare", "."])
        .await?;
    // One commit is enough; a server that gives out no single commits is asked for all its branches.
    let one = [
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-recurse-submodules",
        "--depth=1",
        "--",
        &git.url,
        &git.commit,
    ];
    if let Err(first) = child.run("fetch from", &one).await {
        if !matches!(first, GitError::Failed { .. }) {
            return Err(first);
        }
        let heads = "+refs/heads/*:refs/remotes/o/*";
        let tags = "+refs/tags/*:refs/tags/*";
        let all = [
            "fetch",
            "--quiet",
            "--no-recurse-submodules",
            "--",
            &git.url,
            heads,
            tags,
        ];
        child.run("fetch from", &all).await?;
    }
    let revision = format!("{}^{{commit}}", git.commit);
    child
        .run("find the commit in", &["cat-file", "-e", &revision])
        .await?;
    child
        .run(
            "take the tree from",
            &["archive", "--format=tar", "--output=tree.tar", &git.commit],
        )
        .await?;

    let tree = directory.path().join("tree.tar");
    let (limit, url) = (limits.bytes, git.url.clone());
    tokio::task::spawn_blocking(move || pack(&tree, limit, &url))
        .await
        .map_err(|e| GitError::Io {
            doing: "pack a tree",
            source: std::io::Error::other(e),
        })?
}

fn pack(tree: &Path, limit: u64, url: &str) -> Result<Fetched, GitError> {
    let io = |doing| move |source| GitError::Io { doing, source };
    let input = open_own(tree).map_err(io("read a tree"))?;
    let mut spool = tempfile::tempfile().map_err(io("make a temporary file"))?;
    let output = tempfile::tempfile().map_err(io("make a temporary file"))?;
    let input = std::io::BufReader::new(input);
    let packed = pack::repack(input, &mut spool, output, limit).map_err(|e| match e {
        PackError::TooLarge(limit) => GitError::TooLarge {
            url: url.to_owned(),
            limit,
        },
        // It is no fault of the tree.
        full if room::is_wanting(&full) => GitError::Io {
            doing: "pack a tree",
            source: std::io::Error::other(full),
        },
        other => GitError::Pack {
            url: url.to_owned(),
            what: other.to_string(),
        },
    })?;
    tell(url, &packed.left_out);
    let mut file = packed.archive.output;
    std::io::Seek::rewind(&mut file).map_err(io("read a temporary file"))?;
    Ok(Fetched {
        file,
        sha256: packed.archive.sha256,
    })
}

/// Most files of one tree that a log names.
const TOLD: usize = 10;

fn tell(url: &str, left_out: &[(PathBuf, LeftOut)]) {
    for (name, why) in left_out.iter().take(TOLD) {
        tracing::warn!(url, file = ?name, "left out of the source archive: {why}");
    }
    if let Some(more) = left_out.len().checked_sub(TOLD).filter(|more| *more > 0) {
        tracing::warn!(url, more, "left out of the source archive");
    }
}

/// Opens a file in the child's directory. The child could have put a link or a pipe there, and this process may
/// read more than the child may.
fn open_own(path: &Path) -> std::io::Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::Error::other("it is no plain file"))
    }
}

/// How `git` is run.
struct Child<'a> {
    git: &'a Git,
    directory: &'a Path,
    target: &'a Target,
    address: IpAddr,
    limits: &'a Limits,
}

/// How often the size on disk is looked at.
const SIZE_CHECK: Duration = Duration::from_millis(250);

/// Most bytes of git's own words in an error.
const OUTPUT_LIMIT: u32 = 2000;

fn length(file: &std::fs::File) -> u64 {
    file.metadata().map_or(0, |m| m.len())
}

fn end_of(file: &mut std::fs::File, limit: u32) -> std::io::Result<Vec<u8>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(limit.into())))?;
    let mut end = Vec::new();
    file.take(limit.into()).read_to_end(&mut end)?;
    Ok(end)
}

impl Child<'_> {
    async fn run(&self, doing: &'static str, arguments: &[&str]) -> Result<(), GitError> {
        let io = |source| GitError::Io {
            doing: "run git (is it installed?)",
            source,
        };
        // Without a name, so that nothing in the child's directory can stand in for it.
        let mut said = tempfile::tempfile().map_err(io)?;
        let file = said.try_clone().map_err(io)?;
        let mut command = Command::new("git");
        command
            .args(self.configuration())
            .args(arguments)
            .current_dir(self.directory)
            .env_clear()
            .envs(environment(self.directory))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .process_group(0)
            .kill_on_drop(true);
        if let Some((uid, gid)) = self.limits.user {
            command.uid(uid).gid(gid);
        }
        let mut child = command.spawn().map_err(io)?;
        // git's own children (git-remote-https) are in its group and go with it, however this ends.
        let _group = Group::of(&child);
        let status = loop {
            match tokio::time::timeout(SIZE_CHECK, child.wait()).await {
                Ok(status) => break status.map_err(io)?,
                Err(_) if size(self.directory) + length(&said) > self.limits.bytes => {
                    return Err(self.too_large());
                }
                Err(_) => {}
            }
        };
        if size(self.directory) > self.limits.bytes.saturating_mul(2) {
            return Err(self.too_large());
        }
        if status.success() {
            return Ok(());
        }
        let said = end_of(&mut said, OUTPUT_LIMIT).unwrap_or_default();
        let said = bbot_manifest::log_text(&said);
        let said = said.trim();
        // What the other end says of itself is behind this word.
        let mut own = said.lines().filter(|line| !line.starts_with("remote:"));
        // And where there is no room, there is none for its own words.
        if own.any(room::is_told) || matches!(room::is_there(self.directory), Ok(false)) {
            return Err(GitError::Io {
                doing: "run git",
                source: std::io::Error::new(std::io::ErrorKind::StorageFull, said),
            });
        }
        let output = if said.is_empty() {
            status.to_string()
        } else {
            said.replace('\n', "; ")
        };
        Err(GitError::Failed {
            doing,
            url: self.git.url.clone(),
            output,
        })
    }

    fn too_large(&self) -> GitError {
        GitError::TooLarge {
            url: self.git.url.clone(),
            limit: self.limits.bytes,
        }
    }

    fn configuration(&self) -> Vec<OsString> {
        let address = match self.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let pinned = format!(
            "http.curloptResolve={}:{}:{address}",
            self.target.host, self.target.port
        );
        [
            "core.hooksPath=/dev/null",
            "core.attributesFile=/dev/null",
            "credential.helper=",
            "http.followRedirects=false",
            "protocol.allow=never",
            "protocol.https.allow=always",
            "transfer.fsckObjects=true",
            "gc.auto=0",
            "maintenance.auto=false",
            &pinned,
        ]
        .into_iter()
        .flat_map(|pair| [OsString::from("-c"), OsString::from(pair)])
        .collect()
    }
}

/// Nothing of this process' environment goes to git but where programs and certificates are, and a proxy.
fn environment(directory: &Path) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> = [
        ("GIT_ALLOW_PROTOCOL", "https"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_ASKPASS", "/bin/false"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_ATTR_NOSYSTEM", "1"),
        ("GIT_LFS_SKIP_SMUDGE", "1"),
        ("LC_ALL", "C"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .to_vec();
    environment.push(("HOME".into(), directory.into()));
    for name in [
        "PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "GIT_SSL_CAINFO",
        "https_proxy",
        "HTTPS_PROXY",
        "no_proxy",
    ] {
        if let Some(value) = std::env::var_os(name) {
            environment.push((name.into(), value));
        }
    }
    environment
}

/// A process group that is killed when this is dropped.
struct Group(Option<rustix::process::Pid>);

impl Group {
    fn of(child: &tokio::process::Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(rustix::process::Pid::from_raw),
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Gone already is what is wanted.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Bytes of all files below a directory; what vanishes meanwhile counts nothing.
fn size(directory: &Path) -> u64 {
    let mut total = 0_u64;
    let mut waiting: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => waiting.push(entry.path()),
                Ok(meta) => total = total.saturating_add(meta.len()),
                Err(_) => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(addresses: Addresses) -> Limits {
        Limits {
            time: Duration::from_secs(20),
            bytes: 1 << 20,
            addresses,
            user: None,
        }
    }

    #[test]
    fn only_plain_files_are_taken_from_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("secret"), "secret").unwrap();
        assert!(open_own(&path("secret")).is_ok());
        std::os::unix::fs::symlink(path("secret"), path("link")).unwrap();
        make_pipe(&path("pipe"));
        for name in ["link", "pipe", "none", "."] {
            assert!(open_own(&path(name)).is_err(), "{name}");
        }
    }

    fn make_pipe(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    #[test]
    fn the_end_of_what_git_said() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"0123456789").unwrap();
        assert_eq!(end_of(&mut file, 4).unwrap(), b"6789");
        assert_eq!(end_of(&mut file, 400).unwrap(), b"0123456789");
        assert_eq!(length(&file), 10);
    }

    #[tokio::test]
    async fn refused_before_git_runs() {
        let commit = "0".repeat(40);
        for (url, commit, expected) in [
            (
                "https://127.0.0.1:1/x",
                commit.as_str(),
                "which is not a public address; --allow-private-sources",
            ),
            (
                "https://localhost:1/x",
                &commit,
                "which is not a public address",
            ),
            (
                "https://[::1]:1/x",
                &commit,
                "which is not a public address",
            ),
            ("file:///etc", &commit, "only https:// is fetched"),
            ("https://127.0.0.1:1/x", "main", "is not a commit"),
            (
                "https://127.0.0.1:1/x",
                "--upload-pack=id",
                "is not a commit",
            ),
        ] {
            let git = Git {
                url: url.to_owned(),
                commit: commit.to_owned(),
                archive: None,
            };
            let error = fetch(&git, &limits(Addresses::Public)).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!error.is_internal());
        }
    }

    #[tokio::test]
    async fn an_unreachable_server_is_told() {
        let git = Git {
            url: "https://127.0.0.1:1/x".to_owned(),
            commit: "0".repeat(40),
            archive: None,
        };
        let error = fetch(&git, &limits(Addresses::All)).await.unwrap_err();
        assert!(matches!(error, GitError::Failed { .. }), "{error}");
    }
}
