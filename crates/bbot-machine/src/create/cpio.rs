//! Archives in cpio's "newc" format, which the kernel unpacks as its initial RAM disk
//! (Linux: `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Written here because ownership and device nodes are only header fields: no root is needed, and no program.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Name of the last entry of every archive.
const TRAILER: &str = "TRAILER!!!";

/// Writes entries owned by root, one after the other; [`Writer::finish`] ends the archive.
///
/// Names are relative, without a leading `/`; a directory comes before what is in it.
#[derive(Debug)]
pub(super) struct Writer<W: Write> {
    inner: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            written: 0,
            inode: 0,
        }
    }

    /// Adds a directory of mode 755.
    ///
    /// # Errors
    /// What the writer below reports.
    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file with these permissions.
    ///
    /// # Errors
    /// What the writer below reports; a file of 4 GiB or more does not fit into the format.
    pub(super) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | (permissions & 0o7777), (0, 0), contents)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// What the writer below reports.
    pub(super) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device of mode 600.
    ///
    /// # Errors
    /// What the writer below reports.
    pub(super) fn character_device(
        &mut self,
        name: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// What the writer below reports.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry(TRAILER, 0, (0, 0), &[])?;
        // The kernel wants nothing more; cpio programs read blocks of 512 bytes.
        self.pad(512)?;
        Ok(self.inner)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        contents: &[u8],
    ) -> io::Result<()> {
        let too_large =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, "a cpio entry ends at 4 GiB");
        let size = u32::try_from(contents.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        if name != TRAILER {
            self.inode += 1;
        }
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // No owner, no group, no time: an archive of the same contents has the same bytes.
        let header = format!(
            "070701{:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}{:08X}{:08X}{:08X}{:08X}{name_size:08X}{:08X}",
            self.inode, 0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(contents)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> io::Result<()> {
        while !self.written.is_multiple_of(to) {
            self.put(&[0])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("bin").unwrap();
        writer.file("bin/tool", 0o755, b"12345").unwrap();
        writer.file("empty", 0o644, b"").unwrap();
        writer.link("init", "bin/tool").unwrap();
        writer.character_device("console", 5, 1).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn entries_are_aligned_and_the_archive_ends_with_the_trailer() {
        let bytes = sample();
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"070701"));
        let starts: Vec<usize> = (0..bytes.len() - 6)
            .filter(|&i| &bytes[i..i + 6] == b"070701")
            .collect();
        assert_eq!(starts.len(), 6);
        assert!(starts.iter().all(|start| start % 4 == 0));
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }

    /// busybox reads it as another implementation of the format.
    #[test]
    fn busybox_unpacks_it() {
        if !testkit::program("busybox", "image") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("busybox")
            .args(["cpio", "-id", "bin/*", "empty", "init", "bin"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(
            std::fs::read(dir.path().join("bin/tool")).unwrap(),
            b"12345"
        );
        assert_eq!(std::fs::read(dir.path().join("empty")).unwrap(), b"");
        assert_eq!(
            std::fs::read_link(dir.path().join("init"))
                .unwrap()
                .to_str(),
            Some("bin/tool")
        );
    }
}
