//! The base of a machine: runs mmdebstrap, takes the kernel, the drivers and the disk out of it, and keeps the result in
//! the cache.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, BufWriter, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::scratch::Scratch;
use super::sources::Sources;
use super::{CACHE_AGE, Cached, CreateError, Options, PACKAGES, Progress, host, initrd};

const CUSTOMIZE: &str = include_str!("guest/customize.sh");
const INIT: &[u8] = include_bytes!("guest/init.sh");
const UDHCPC: &[u8] = include_bytes!("guest/udhcpc.sh");

/// Meta package of the kernel: the flavour for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Changes when code, not data, changes what a base holds.
const LAYOUT: &[u8] = b"2";

/// Runs mmdebstrap with the caller's directory as descriptor 9.
const AS_USER: &str = r#"exec mmdebstrap "$@" 9<"$BBOT_SHARED""#;

/// The same for root, whose mmdebstrap has no namespaces of its own: here its mounts are seen by nobody else, and all of
/// it ends, killed, with whoever runs it. It is not the first process there, which would not hear its own signals.
const AS_ROOT: &str = r#"exec unshare --mount --pid --fork --kill-child=KILL --mount-proc \
    sh -c 'mmdebstrap "$@"; exit $?' sh "$@" 9<"$BBOT_SHARED""#;

/// How the name of a base begins that is being made; its own name and a random ending follow.
const UNFINISHED: &str = ".making-";

/// Room that a base and the system it is made from take, in bytes, when nothing else is installed: measured 0.9 GB and 0.7 GB.
const NEEDED: u64 = 1800 << 20;

/// A base in the cache.
#[derive(Debug)]
pub(super) struct Base {
    /// Holds `disk.img`, `kernel`, `initrd`, `packages` and `id`.
    pub(super) directory: PathBuf,
    /// Differs between any two bases.
    pub(super) id: String,
    /// The compilers, for the summary: `, gcc 12.2.0, cmake 3.25.1`.
    pub(super) tools: String,
    /// Whether it was there already.
    pub(super) from_cache: bool,
    /// Held while the base is used: another run would take it away to put a newer one in its place.
    _lock: File,
}

impl Base {
    fn open(directory: PathBuf, from_cache: bool, lock: File) -> Result<Self, CreateError> {
        let id = read(&directory.join("id"))?;
        let tools = tools(&read(&directory.join("packages"))?);
        Ok(Self {
            directory,
            id,
            tools,
            from_cache,
            _lock: lock,
        })
    }

    /// Room that it really takes, in bytes.
    pub(super) fn used_bytes(&self) -> Result<u64, CreateError> {
        let disk = self.directory.join("disk.img");
        let metadata = fs::metadata(&disk).map_err(CreateError::io("cannot read", &disk))?;
        Ok(metadata.blocks() * 512)
    }
}

/// Finds the base in the cache or makes it.
pub(super) fn obtain(
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Base, CreateError> {
    let cache = &options.cache;
    fs::create_dir_all(cache).map_err(CreateError::io("cannot make", cache))?;
    let cache = &fs::canonicalize(cache).map_err(CreateError::io("cannot find", cache))?;
    let sources = match &options.mirror {
        Some(_) => Sources::default(),
        None => host::sources(options.suite.code_name()),
    };
    let name = format!("{}-{}", options.suite.code_name(), key(options, &sources));

    // Two runs for the same base: the second waits, and finds what the first has made.
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(CreateError::io("cannot make", &lock_path))?;
    if lock.try_lock().is_err() {
        progress(Progress(
            "waiting for another run that makes the same base".to_owned(),
        ));
        lock.lock()
            .map_err(CreateError::io("cannot lock", &lock_path))?;
    }

    let directory = cache.join(&name);
    if let Cached::Within(age) = options.cached
        && fs::metadata(directory.join("id"))
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|made| {
                SystemTime::now()
                    .duration_since(made)
                    .is_ok_and(|old| old <= age)
            })
    {
        progress(Progress(format!(
            "using the base in {}",
            directory.display()
        )));
        return Base::open(directory, true, lock);
    }

    remove_unfinished(cache, &name);
    let work = tempfile::Builder::new()
        .prefix(&format!("{UNFINISHED}{name}."))
        .tempdir_in(cache)
        .map_err(CreateError::io("cannot make a directory in", cache))?;
    make(options, &sources, work.path(), progress)?;
    prune(cache, &name);
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(CreateError::io("cannot remove", &directory))?;
    }
    let made = work.keep();
    fs::set_permissions(&made, Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(&made, &directory))
        .map_err(|error| {
            let _ = fs::remove_dir_all(&made);
            CreateError::io("cannot move the new base to", &directory)(error)
        })?;
    Base::open(directory, false, lock)
}

/// Removes what runs have left that were killed while they made a base. Whoever makes one holds its lock; that of `ours` is
/// held by the caller, who has not begun yet.
fn remove_unfinished(cache: &Path, ours: &str) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some((base, _random)) = name
            .to_str()
            .and_then(|name| name.strip_prefix(UNFINISHED)?.rsplit_once('.'))
        else {
            continue;
        };
        let lock = if base == ours {
            None
        } else {
            match File::create(cache.join(format!("{base}.lock"))) {
                Ok(lock) if lock.try_lock().is_ok() => Some(lock),
                _ => continue,
            }
        };
        // What cannot be removed now can be the next time.
        let _ = fs::remove_dir_all(entry.path());
        drop(lock);
    }
}

/// Removes bases that are too old for anyone to use again: changed sources or packages leave them behind, half a gigabyte
/// each. What cannot be removed stays; one that is in use is locked.
fn prune(cache: &Path, except: &str) {
    let Ok(entries) = fs::read_dir(cache) else {
        return;
    };
    for entry in entries.flatten() {
        let directory = entry.path();
        let made = fs::metadata(directory.join("id")).and_then(|metadata| metadata.modified());
        let is_old = made.is_ok_and(|made| {
            SystemTime::now()
                .duration_since(made)
                .is_ok_and(|old| old > CACHE_AGE)
        });
        if !is_old || entry.file_name() == except {
            continue;
        }
        let lock_path = directory.with_extension("lock");
        if let Ok(lock) = File::create(&lock_path)
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(&directory);
            let _ = fs::remove_file(&lock_path);
        }
    }
}

/// Hash over all that goes into a base, short enough for a file name.
fn key(options: &Options, sources: &Sources) -> String {
    let mut hash = Sha256::new();
    let disk = options.disk_bytes.to_string();
    let mut parts = vec![
        CUSTOMIZE.as_bytes(),
        INIT,
        UDHCPC,
        LAYOUT,
        KERNEL.as_bytes(),
        initrd::INIT,
        disk.as_bytes(),
        sources.one_line.as_bytes(),
        sources.deb822.as_bytes(),
        options.mirror.as_deref().unwrap_or_default().as_bytes(),
    ];
    parts.extend(packages(options).map(str::as_bytes));
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())[..16].to_owned()
}

fn packages(options: &Options) -> impl Iterator<Item = &str> {
    PACKAGES
        .into_iter()
        .chain(options.packages.iter().map(String::as_str))
}

fn make(
    options: &Options,
    sources: &Sources,
    work: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), CreateError> {
    let path = host::search_path();
    let as_root = rustix::process::geteuid().is_root();
    host::require_programs(options.suite, &path, as_root)?;
    if !as_root {
        host::require_user_namespace(&path)?;
    }
    host::require_space(work, NEEDED)?;

    // Reached through a descriptor by the user that root of mmdebstrap's namespace really is, and by nobody else: the
    // directory around it is private.
    let shared = work.join("shared");
    fs::create_dir(&shared)
        .and_then(|()| fs::set_permissions(&shared, Permissions::from_mode(0o711)))
        .map_err(CreateError::io("cannot make", &shared))?;
    let disk = shared.join("disk.img");
    let handed_out = shared.join("handed-out.tar");
    add_files(&shared.join("to-add.tar"))?;
    for (path, size) in [(&disk, options.disk_bytes), (&handed_out, 0)] {
        File::create(path)
            .and_then(|file| {
                file.set_len(size)?;
                file.set_permissions(Permissions::from_mode(0o666))
            })
            .map_err(CreateError::io("cannot make", path))?;
    }

    let scratch = if as_root {
        Some(Scratch::make()?)
    } else {
        None
    };
    let mut command = Command::new("sh");
    command
        .args(["-c", if as_root { AS_ROOT } else { AS_USER }, "sh"])
        .arg("--variant=minbase")
        .arg(if as_root {
            "--mode=root"
        } else {
            "--mode=unshare"
        })
        .arg("--architectures=amd64")
        .arg("--format=null")
        .arg(format!(
            "--include={}",
            packages(options).collect::<Vec<_>>().join(",")
        ))
        .args([
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/info/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        ])
        .args(
            host::options()
                .iter()
                .map(|option| format!("--aptopt={option}")),
        )
        .arg(format!("--customize-hook={CUSTOMIZE}"))
        .args([options.suite.code_name(), "/dev/null"])
        // Root of a user namespace could not return to a directory of its caller's.
        .current_dir("/")
        .env("BBOT_SHARED", &shared)
        .env("BBOT_KERNEL", KERNEL)
        .env("PATH", &path)
        .env("LC_ALL", "C.UTF-8")
        .env("LANG", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive");
    if let Some(mirror) = &options.mirror {
        command.arg(mirror);
    }
    for (name, text) in [
        ("host.list", &sources.one_line),
        ("host.sources", &sources.deb822),
    ] {
        if !sources.is_empty() && !text.is_empty() {
            let path = shared.join(name);
            fs::write(&path, text).map_err(CreateError::io("cannot write", &path))?;
            command.arg(path);
        }
    }
    command.env(
        "TMPDIR",
        scratch
            .as_ref()
            .map_or_else(Scratch::parent, |scratch| scratch.path().into()),
    );
    if as_root {
        #[expect(unsafe_code, reason = "pre_exec is the only way between fork and exec")]
        // SAFETY: one system call with numbers.
        unsafe {
            // It ends with this process: with the thread that waits for it, to be exact. An ordinary user's is not killed,
            // since only mmdebstrap itself can remove what it has made; by Ctrl-C it is told to.
            command.pre_exec(|| {
                let kill = rustix::process::Signal::KILL;
                rustix::process::set_parent_process_death_signal(Some(kill)).map_err(Into::into)
            });
        }
    }
    run(&mut command, progress)?;
    drop(scratch);

    progress(Progress("making the RAM disk".to_owned()));
    let finished = work.join("disk.img");
    fs::set_permissions(&disk, Permissions::from_mode(0o644))
        .and_then(|()| File::open(&disk)?.sync_all())
        .and_then(|()| fs::rename(&disk, &finished))
        .map_err(CreateError::io("cannot keep", &disk))?;
    take(&handed_out, work)?;
    fs::remove_dir_all(&shared).map_err(CreateError::io("cannot remove", &shared))
}

/// The files of ours in the guest, owned by root.
fn add_files(to: &Path) -> Result<(), CreateError> {
    let write = || {
        let file = File::create(to)?;
        let mut archive = tar::Builder::new(file);
        let mut add = |path: &str, kind, mode, contents: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(contents.len() as u64);
            archive.append_data(&mut header, path, contents)
        };
        use tar::EntryType::{Directory, Regular};
        add("build/", Directory, 0o755, b"")?;
        add("usr/lib/bbot/", Directory, 0o755, b"")?;
        add("usr/lib/bbot/init", Regular, 0o755, INIT)?;
        add("usr/lib/bbot/udhcpc", Regular, 0o755, UDHCPC)?;
        archive.into_inner()?.sync_all()
    };
    write().map_err(CreateError::io("cannot write", to))
}

/// Runs mmdebstrap; its words become progress, and the last of them the error.
fn run(command: &mut Command, progress: &mut dyn FnMut(Progress)) -> Result<(), CreateError> {
    let started = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = started.map_err(CreateError::io("cannot run", Path::new("sh")))?;
    let mut last_words = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            match line.strip_prefix("I: ") {
                Some(hook) if hook.starts_with("running --customize-hook") => {
                    progress(Progress(
                        "adding the kernel, making the disk image".to_owned(),
                    ));
                }
                Some(words) => progress(Progress(words.trim_end_matches("...").to_owned())),
                // mmdebstrap shows the hook when it runs it and again when it fails.
                None if is_of_hook(&line) => {}
                None => {
                    if last_words.len() == 20 {
                        last_words.pop_front();
                    }
                    last_words.push_back(line);
                }
            }
        }
    }
    let status = child
        .wait()
        .map_err(CreateError::io("cannot wait for", Path::new("mmdebstrap")))?;
    if status.success() {
        return Ok(());
    }
    Err(CreateError::Mmdebstrap {
        status: status.to_string(),
        last_words: Vec::from(last_words).join("\n"),
    })
}

/// Whether a line is of the hook's text, as mmdebstrap quotes it: words in front of its first line, a quote behind its last.
fn is_of_hook(line: &str) -> bool {
    let line = line.trim_end();
    CUSTOMIZE.lines().any(|own| line == own)
        || line == "'"
        || CUSTOMIZE
            .lines()
            .next()
            .is_some_and(|first| line.ends_with(first))
}

/// Takes the kernel and the RAM disk out of what the hook has handed out, and names the base.
fn take(archive: &Path, work: &Path) -> Result<(), CreateError> {
    let mut parts = initrd::Parts::default();
    let mut hash = Sha256::new();
    let mut kernel = Vec::new();
    let mut packages = Vec::new();
    let mut read_all = || {
        let file = File::open(archive)?;
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            // Behind the first part, which is the kernel's version.
            let below = name
                .split_once('/')
                .map_or("", |(_, below)| below)
                .to_owned();
            let is_module = entry.header().entry_type().is_file() && below.starts_with("kernel/");
            if !is_module
                && !["vmlinuz", "busybox", "packages"].contains(&name.as_str())
                && below != "modules.dep"
            {
                continue;
            }
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents)?;
            hash.update(Sha256::digest(&contents));
            match name.as_str() {
                "vmlinuz" => kernel = contents,
                "busybox" => parts.busybox = contents,
                "packages" => packages = contents,
                _ if is_module => {
                    parts.modules.insert(below, contents);
                }
                _ => parts.dependencies = String::from_utf8_lossy(&contents).into_owned(),
            }
        }
        Ok(())
    };
    read_all().map_err(CreateError::io("cannot read", archive))?;
    for (what, is_empty) in [
        ("no kernel", kernel.is_empty()),
        ("no busybox", parts.busybox.is_empty()),
        ("no modules.dep", parts.dependencies.is_empty()),
        ("no list of packages", packages.is_empty()),
    ] {
        if is_empty {
            return Err(CreateError::Incomplete(what.to_owned()));
        }
    }

    let path = work.join("kernel");
    fs::write(&path, &kernel).map_err(CreateError::io("cannot write", &path))?;
    let path = work.join("packages");
    fs::write(&path, &packages).map_err(CreateError::io("cannot write", &path))?;
    let path = work.join("initrd");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .map_err(CreateError::io("cannot make", &path))?;
    initrd::write(&parts, BufWriter::new(file)).map_err(CreateError::io("cannot write", &path))?;
    hash.update(INIT);
    // The file system's random UUID: no two disks have the same id, even of the same packages.
    hash.update(file_system_id(&work.join("disk.img"))?);
    let path = work.join("id");
    fs::write(&path, hex::encode(hash.finalize())).map_err(CreateError::io("cannot write", &path))
}

/// The UUID of an ext4 file system, from its superblock (Linux: `struct ext4_super_block`, `s_uuid`); an error when there is none.
fn file_system_id(disk: &Path) -> Result<[u8; 16], CreateError> {
    use std::os::unix::fs::FileExt;
    let mut block = [0; 0x78];
    File::open(disk)
        .and_then(|file| file.read_exact_at(&mut block, 1024))
        .map_err(CreateError::io("cannot read", disk))?;
    let [magic, uuid] = [&block[0x38..0x3a], &block[0x68..0x78]];
    if magic != [0x53, 0xef] {
        return Err(CreateError::Incomplete(
            "the disk holds no file system".to_owned(),
        ));
    }
    uuid.try_into()
        .map_err(|_| CreateError::Incomplete("the disk has no id".to_owned()))
}

fn read(path: &Path) -> Result<String, CreateError> {
    fs::read_to_string(path).map_err(CreateError::io("cannot read", path))
}

/// The versions that people ask for, out of a list of `package version`.
fn tools(packages: &str) -> String {
    let mut text = String::new();
    for tool in ["gcc", "cmake"] {
        let version = packages
            .lines()
            .find_map(|line| line.strip_prefix(tool)?.strip_prefix(' '));
        if let Some(version) = version {
            let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
            let upstream = upstream.rsplit_once('-').map_or(upstream, |(rest, _)| rest);
            text.push_str(&format!(", {tool} {upstream}"));
        }
    }
    text
}

#[cfg(test)]
mod tests;
