//! Opens an archive, whatever it is compressed with, as a stream of tar bytes.

use std::{
    fs::File,
    io::{BufReader, Chain, Cursor, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};

type Opened = Chain<Cursor<Vec<u8>>, BufReader<File>>;

/// The tar stream inside the archive at `path`.
///
/// The compression is told by the first bytes, not by the name: `.orig.tar.xz`, `.tgz` and a
/// download without any suffix all work.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut head = Vec::new();
    reader
        .by_ref()
        .take(512)
        .read_to_end(&mut head)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let kind = Kind::of(&head);
    let whole: Opened = Cursor::new(head).chain(reader);
    Ok(match kind {
        Kind::Gzip => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Kind::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(whole)),
        Kind::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(whole)),
        Kind::Zstd => Box::new(
            ruzstd::decoding::StreamingDecoder::new(whole)
                .with_context(|| format!("cannot read {} as zstd", path.display()))?,
        ),
        Kind::Tar => Box::new(whole),
        Kind::Zip => bail!(
            "{} is a zip archive; bbot reads tar archives (plain, gzip, bzip2, xz, zstd): unpack it and name the directory",
            path.display()
        ),
        Kind::Unknown => bail!(
            "{} is not an archive that bbot reads (tar, plain or compressed with gzip, bzip2, xz or zstd)",
            path.display()
        ),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    Tar,
    Zip,
    Unknown,
}

impl Kind {
    fn of(head: &[u8]) -> Kind {
        match head {
            [0x1f, 0x8b, ..] => Kind::Gzip,
            [b'B', b'Z', b'h', ..] => Kind::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Kind::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Kind::Zstd,
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Kind::Zip,
            // POSIX and GNU tar alike have "ustar" at offset 257.
            _ if head.get(257..262) == Some(b"ustar") => Kind::Tar,
            _ => Kind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_compression() {
        assert_eq!(Kind::of(b"\x1f\x8b\x08"), Kind::Gzip);
        assert_eq!(Kind::of(b"BZh91AY"), Kind::Bzip2);
        assert_eq!(Kind::of(b"\xfd7zXZ\0\0"), Kind::Xz);
        assert_eq!(Kind::of(b"\x28\xb5\x2f\xfd"), Kind::Zstd);
        assert_eq!(Kind::of(b"PK\x03\x04"), Kind::Zip);
        assert_eq!(Kind::of(b""), Kind::Unknown);
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(Kind::of(&tar), Kind::Tar);
    }
}
